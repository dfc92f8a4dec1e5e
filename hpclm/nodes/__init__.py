"""What nodes can do, and whether a node is fit for a stage."""
