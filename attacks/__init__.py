"""Gradient inversion attacks, one file per family. Each registers itself (`leakaudit.protocol.registry`)."""
