"""Hugging Face models, fine-tuned and asked: transformers and PEFT, on DDP, FSDP2 and DeepSpeed."""
