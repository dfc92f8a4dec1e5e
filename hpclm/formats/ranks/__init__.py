"""Checkpoints that any split can read: sharded safetensors with a manifest."""
