"""For plugin and pass authors."""
