"""Run a command with cores, somewhere, and watch it; one file a place."""
