"""The worker modules that need torch."""
