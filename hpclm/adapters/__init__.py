"""What is trained next to a frozen model."""
