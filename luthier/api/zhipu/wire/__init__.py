"""What only Zhipu's clients send and read, and what it means where they say nothing."""
