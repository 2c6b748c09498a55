"""The passes: one file each; copy one to start your own."""
