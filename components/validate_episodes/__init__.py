"""The component `validate_episodes`."""
