"""Which models are offered on which replicas; so far the shared pool alone."""
