"""Bytes of a file into JSON records, each with its place, and every fault that is met on the way."""
