"""What is done about a failure: start again, leave a node out, or stop."""
