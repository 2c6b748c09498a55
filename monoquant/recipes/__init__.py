"""Everything that quantize() can do, as a TOML file; needs the extra ``cli``."""
