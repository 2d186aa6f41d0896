"""Pictures of strangers: their type told from their bytes, decoded in a process with limits, read out of archives."""
