"""What models read: rows, templates, tokenizers, text, and the sources they come from."""
