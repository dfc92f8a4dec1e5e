"""GPT on megatron-core, and prompt learning on a frozen one."""
