"""Which models are offered on which replicas: the shared pool, and deployments with replicas of their own."""
