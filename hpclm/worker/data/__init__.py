"""Rows and text as batches of token ids."""
