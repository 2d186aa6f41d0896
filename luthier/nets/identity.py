"""What an artifact is known by: its bytes, the tensors in them, and the base weights that it was made for. No torch."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from luthier.storage import contents, digest_of

IDENTITY, CANARY = "identity.json", "canary.json"
"""What an export adds to the files of a method."""

_LONGEST_HEADER = 100 * 1024**2  # bytes, as safetensors itself has it


class TensorKind(BaseModel):
    """A tensor as the header of its file describes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: str
    shape: tuple[int, ...]


class Identity(BaseModel):
    """`identity` is sha256 over all the other fields but `version` and `renderer_sha256`.

    It is kept as identity.json among the files it describes, of which neither it nor the canary is one. An artifact
    without it was made before there was one: it is known by its bytes alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    identity: str
    files_sha256: str
    tensors: dict[str, TensorKind]
    base_sha256: str
    renderer_sha256: str | None = None

    @classmethod
    def of(cls, folder: Path, *, base_sha256: str, renderer_sha256: str | None = None) -> Identity:
        """The identity of the artifact in `folder`. Raises ValueError for a file that is no safetensors."""
        sha256s = contents(folder)
        files = digest_of({name: sha256 for name, sha256 in sha256s.items() if name not in (IDENTITY, CANARY)})
        tensors: dict[str, TensorKind] = {}
        for name in sorted(sha256s):
            if name.endswith(".safetensors"):
                tensors |= _header(folder / name)
        said = [files, {name: [kind.dtype, *kind.shape] for name, kind in tensors.items()}, base_sha256]
        return cls(
            identity=hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest(),
            files_sha256=files,
            tensors=tensors,
            base_sha256=base_sha256,
            renderer_sha256=renderer_sha256,
        )

    @classmethod
    def kept(cls, folder: Path) -> Identity | None:
        """What was written when the artifact was; None for one of before. Raises ValueError where it cannot be read."""
        try:
            return cls.model_validate_json((folder / IDENTITY).read_bytes())
        except FileNotFoundError:
            return None


def _header(path: Path) -> dict[str, TensorKind]:
    """The tensors of a safetensors file by name: its first 8 bytes are the length of the JSON that describes them."""
    with path.open("rb") as file:
        first = file.read(8)
        size = struct.unpack("<Q", first)[0] if len(first) == 8 else _LONGEST_HEADER + 1
        if size > _LONGEST_HEADER:
            raise ValueError(f"{path.name} is no safetensors file")
        described = json.loads(file.read(size))
    return {
        name: TensorKind(dtype=one["dtype"], shape=tuple(one["shape"]))
        for name, one in described.items()
        if name != "__metadata__"
    }
