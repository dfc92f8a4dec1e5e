"""Commands on mutated input: `python -m tests.fuzz --seed 1 --cases 1000`."""
