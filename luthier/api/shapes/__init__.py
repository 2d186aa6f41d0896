"""What the OpenAI and Zhipu families share: wire models, and routes that do not differ."""
