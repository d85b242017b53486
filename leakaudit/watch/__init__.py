"""Live progress: the terminal, the time left, TensorBoard."""
