"""What a stage can do: one module a task, found by its name."""
