"""External file formats and hpclm's own checkpoints: read, write, inspect."""
