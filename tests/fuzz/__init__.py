"""Programs that throw random files at what reads files."""
