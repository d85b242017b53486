"""From model.py and data to a checked target."""
