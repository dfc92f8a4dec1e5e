"""Metrics of a stage for other tools, read from its folder by a process of its own: training neither waits for them nor
fails with them."""
