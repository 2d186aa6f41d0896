"""The serving engine: a ReplicaSpec in, tokens out. It knows tensors and files, never a database."""
