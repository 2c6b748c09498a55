"""Packed modules: canonical storage of 4, 8 and 16 bits, and the modules that hold it."""
