"""Checkpoints of Megatron-LM, read without torch."""
