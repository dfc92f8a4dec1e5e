"""The input of models: rows, templates, tokenizers, text, and the sources they come from."""
