"""What every room's ranks share: helpers on torch tensors."""
