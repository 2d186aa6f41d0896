"""Kernels of libraries for the GPU, of which a run takes those that are installed and proved; see choice.py."""
