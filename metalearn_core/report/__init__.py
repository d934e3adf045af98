"""The report of a pipeline run: one HTML page with everything that a person needs to judge it, a section a file."""
