"""Learners of the model family: networks that read a support set, and give what classifies its queries."""
