"""For plugin and pass authors: :mod:`monoquant.testing.strategies` makes schemes, weights, layers and rules.

Needs the extra ``monoquant[testing]``.
"""
