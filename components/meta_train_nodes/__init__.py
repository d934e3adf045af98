"""The component `meta_train_nodes`."""
