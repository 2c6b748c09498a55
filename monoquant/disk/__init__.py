"""Files that somebody else may have written, read so that no content of theirs can do harm."""
