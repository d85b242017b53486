"""How long work is seeded, bounded in time and memory, reported and resumed."""
