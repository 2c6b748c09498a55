"""For plugin, pass and adapter authors.

:mod:`monoquant.testing.strategies` makes schemes, weights, layers and rules; it needs the extra ``monoquant[testing]``.
:mod:`monoquant.testing.zoo` holds small modules of every kind that monoquant packs, and some that it refuses.
"""
