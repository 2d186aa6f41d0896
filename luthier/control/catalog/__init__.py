"""Names that a client may put in "model": base models, fine-tuned models, saved checkpoints."""
