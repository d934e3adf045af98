"""The pipeline, where it runs, and the command line `metalearn`."""
