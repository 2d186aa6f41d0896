"""Kernels that a compiler or a library makes, of which a run takes those that are installed and proved; see choice.py."""
