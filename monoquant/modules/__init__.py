"""Packed modules: canonical INT4 storage and the layers built on it."""
