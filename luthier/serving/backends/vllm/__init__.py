"""vLLM, in an environment of its own: a server beside the replica, spoken to by token ids."""

from luthier.serving.backends.vllm.backend import Vllm

__all__ = ["Vllm"]
