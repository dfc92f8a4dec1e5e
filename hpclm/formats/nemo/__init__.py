"""NeMo 1.x archives, read without torch and without running anything that is in them."""
