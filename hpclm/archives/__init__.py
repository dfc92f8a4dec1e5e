"""NeMo 1.x archives and PEFT adapters, read without torch and without running anything that is in them."""
