"""Instruction rows from seed rows by a chat model behind an OpenAI-compatible endpoint, in the way of self-instruct.

Self-instruct is arXiv:2212.10560; the counts, filters and the threshold are those of Stanford Alpaca's
generate_instruction.py.
"""
