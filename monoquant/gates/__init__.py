"""Checks that a caller asks for: limits, and an earlier report that must not be fallen short of."""
