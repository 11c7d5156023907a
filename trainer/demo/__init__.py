"""A small preference world with a known gold reward, and the whole system run through it."""
