"""Networks that embed examples, written as pure functions of their weights."""
