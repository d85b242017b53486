"""From scores to pass, fail or inconclusive, and to what should be done."""
