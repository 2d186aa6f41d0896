"""Training methods, one file each: which numbers learn."""
