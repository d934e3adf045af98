"""The work of each pipeline step, whatever engine runs it: typed values in, files and typed values out."""
