"""The training engine: a TrainingSpec in, RunEvents and an artifact out. It never imports a database."""
