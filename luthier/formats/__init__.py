"""Bytes of a file into examples; one file a shape of row."""
