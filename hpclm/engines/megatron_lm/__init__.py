"""Megatron-LM's own pretrain_gpt.py, with the flags a recipe means."""
