"""The component `decode_part`."""
