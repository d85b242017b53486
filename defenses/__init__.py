"""Defenses, one file each. Each registers itself (`leakaudit.protocol.registry`)."""
