"""Luthier: fine-tune language models on your own machines, and call them through the API your code already uses."""

from importlib.metadata import version

__version__ = version("luthier")
