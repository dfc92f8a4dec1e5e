"""The recipe's schema, one module per section. Frozen, strict, and without unknown keys."""
