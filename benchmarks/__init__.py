"""What the README's numbers come from. Run with `python -m benchmarks.NAME` from the repository root."""
