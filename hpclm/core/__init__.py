"""What every other room stands on: errors, files, the layout of a run, the spec of a stage. Standard library only."""
