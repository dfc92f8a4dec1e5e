"""What ranks run of it."""
