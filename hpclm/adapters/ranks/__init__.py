"""Prompt learning: the trainable virtual tokens of prompt-tuning and p-tuning."""
