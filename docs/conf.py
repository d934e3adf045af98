"""How Sphinx builds these pages: `make docs`."""

from metalearn_core.version import package_version

project = "metalearn-pipelines"
author = copyright = "the authors of metalearn-pipelines, Apache License 2.0"
version = release = package_version()
extensions = ["myst_parser"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = project
html_copy_source = False
exclude_patterns = ["conf.py", "screenshots.py"]
