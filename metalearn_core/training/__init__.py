"""Meta-training: the loop, its engine and its checkpoints."""
