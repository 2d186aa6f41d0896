"""Makes the world agree with the rows."""
