"""Meta-learning algorithms, one file each, grouped by family."""
