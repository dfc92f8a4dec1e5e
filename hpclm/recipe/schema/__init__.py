"""The recipe's schema, one section a module. Frozen, strict, and closed to unknown keys."""
