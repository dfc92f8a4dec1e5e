"""The tasks of a stage: one module per task, found by its name."""
