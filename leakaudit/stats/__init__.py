"""Exact intervals and tests."""
