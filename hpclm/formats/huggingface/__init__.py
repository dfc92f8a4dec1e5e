"""Models as transformers' `save_pretrained` writes them: config.json, safetensors and a tokenizer. Without torch."""
