"""Two results, a branch of them, or the defenses of one: whether they may be compared, what changed, which to take."""
