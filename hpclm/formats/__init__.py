"""Other people's files and our own checkpoints: read, write, inspect."""
