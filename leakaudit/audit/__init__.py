"""The experiment: what is attacked, in which order, and what comes of it."""
