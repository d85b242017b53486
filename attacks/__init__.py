"""Gradient inversion attacks, one file per family. Each registers itself with `leakaudit.registry.register_attack`."""
