"""What a user gives as a network: taken out of its wrappers, copied, run in float32, and its outputs read."""
