"""The program that says what transformers answers in fp32: `python -m …reference WEIGHTS LENGTH LIKELIEST < PROMPTS`.

Prompts are a JSON list of lists of token ids; the last line it prints is, for each, a list of [id, logprob, likeliest].
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(weights: Path, length: int, likeliest: int) -> None:
    from luthier.nets.generate import Sampler, decode
    from luthier.nets.loading import load_model

    prompts: list[list[int]] = json.load(sys.stdin)
    model = load_model(weights, precision="fp32")
    answers = [
        list(decode(model, prompt, Sampler(temperature=0, logprobs=likeliest), stops=(), max_tokens=length))
        for prompt in prompts
    ]
    print("\n" + json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
