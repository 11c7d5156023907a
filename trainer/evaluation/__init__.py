"""How good a reward model is, measured from a checkpoint or through a reward URL."""
