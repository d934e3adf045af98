"""Learners of the memory family: networks that write a support set down, and look it up."""
