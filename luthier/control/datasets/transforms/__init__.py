"""Versions of a file made from another one, by a recorded operation."""
