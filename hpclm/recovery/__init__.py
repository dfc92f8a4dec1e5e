"""What is done after a failure: restart, exclude a node, or stop."""
