"""NeMo 1.x's own prompt-learning scripts, with the configuration a recipe means."""
