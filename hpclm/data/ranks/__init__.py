"""Batches of token ids, made on the ranks."""
