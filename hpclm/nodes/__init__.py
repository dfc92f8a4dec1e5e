"""The capabilities of nodes, and whether a node can run a stage."""
