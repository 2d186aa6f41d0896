"""Many sequences in one forward pass, their keys and values in blocks of one pool, each with an adapter of its own."""
