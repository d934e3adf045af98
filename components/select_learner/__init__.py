"""The component `select_learner`."""
