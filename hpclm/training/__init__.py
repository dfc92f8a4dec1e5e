"""What training is, whatever the engine."""
