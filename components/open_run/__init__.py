"""The component `open_run`."""
