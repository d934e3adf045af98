"""The command line `metalearn`: thin verbs around core and pipeline, which import what they need when they run."""

from pipelines.command_line.main import main

__all__ = ["main"]
