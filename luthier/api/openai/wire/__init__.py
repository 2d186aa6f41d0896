"""What only OpenAI's clients send, and what it means where they say nothing."""
