"""Runs: the run directory, its record, and everything that reads or starts a run.

`paths` and `files` are leaves that use the standard library alone; any room, the worker included, may import them.
"""
