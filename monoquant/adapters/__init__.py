"""Adapters: which modules can be packed, and how. One file per kind; copy one to teach monoquant another kind."""
