"""Messages into tokens and back: the one owner of the chat template."""
