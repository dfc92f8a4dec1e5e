"""GPT on megatron-core: devices, process groups, model, optimizer, training steps."""
