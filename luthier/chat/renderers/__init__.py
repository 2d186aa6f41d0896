"""Renderers, one file a model family."""
