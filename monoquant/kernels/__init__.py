"""Kernels: how a packed matrix multiplies, and how weights are rounded and packed, on one device or another."""
