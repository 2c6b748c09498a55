"""Files: monoquant's own format."""
