"""The base of every other package: errors, files, the layout of a run, the spec of a stage. Standard library only."""
