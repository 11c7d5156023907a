"""Policies from conversations: fine-tuned, or small ones trained from scratch."""
