"""NeMo 1.x's own prompt-learning scripts, with a configuration made from the recipe."""
