"""What the documentation's numbers come from. Run with `python -m benchmarks.NAME` from the repository root."""
