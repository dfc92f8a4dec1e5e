"""Megatron-LM's own pretrain_gpt.py, with flags made from the recipe."""
