"""Learners of the optimization family."""
