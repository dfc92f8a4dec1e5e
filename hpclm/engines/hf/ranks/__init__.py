"""What ranks run of engine hf."""
