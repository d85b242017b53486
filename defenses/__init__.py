"""Defenses, one file each. Each registers itself with `leakaudit.registry.register_defense`."""
