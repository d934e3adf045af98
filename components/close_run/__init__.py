"""The component `close_run`."""
