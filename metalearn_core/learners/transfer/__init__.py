"""Learners of the transfer family."""
