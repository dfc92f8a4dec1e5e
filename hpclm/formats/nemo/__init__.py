"""NeMo 1.x archives, read without torch and without executing anything in them."""
