"""What the importers of fine-tuning configurations share: values, files beside them, and transformers' arguments."""
