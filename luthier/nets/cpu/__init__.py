"""A pass over many sequences as one compiled call, for a processor: see docs/decisions/a-step-compiled.md."""
