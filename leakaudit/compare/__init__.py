"""Two results, or a branch of them: whether they may be compared, and what changed."""
