"""The component `build_episodes`."""
