"""Scoring files without a server."""
