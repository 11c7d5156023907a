"""What a reward model is: contract, encoding, packing, one forward pass."""
