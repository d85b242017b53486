"""Gradient matching for stacks of trials, fast and exact."""
