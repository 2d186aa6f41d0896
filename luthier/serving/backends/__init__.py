"""Serving backends, one file a way of making tokens."""
