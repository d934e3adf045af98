"""What is measured, beside its peers in the same run. Start with `python -m benchmarks --help`."""
