"""What was recovered, what it cost, and what is odd about it."""
