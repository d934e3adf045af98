"""The component `meta_train`."""
