"""How codes are chosen: one algorithm per file, all with the contract of ``base.py``."""
