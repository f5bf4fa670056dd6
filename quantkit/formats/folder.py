"""A checkpoint folder as Hugging Face lays it out: config.json, safetensors in one file or in shards, tokenizer files.

Opening reads headers and small JSON files alone, so whatever cannot work is refused at once: pickles, checkpoints that
are quantized already, missing or truncated shards. Whether the tensors fit the architecture is `Checkpoint.check`'s
question, since only a recorded program knows what it needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.formats.safetensors import SafetensorsFile
from quantkit.formats.source import Checkpoint, Header
from quantkit.tensor import Tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SIDECARS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
KINDS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
PICKLES = ("*.bin", "*.pt", "*.pth")
MAX_TEXT_BYTES = 100_000_000


class FolderCheckpoint(Checkpoint):
    """An open checkpoint folder.

    Raises
    ------
    CheckpointError
        When config.json or a shard is missing, truncated or damaged.
    UnsupportedError
        When the weights are pickles or already quantized.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._config = _read_object(path / "config.json")
        self._check_config()
        self._shards = self._open_shards()

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    @property
    def files(self) -> Mapping[str, bytes | Path]:
        return MappingProxyType({name: self.path / name for name in SIDECARS if (self.path / name).is_file()})

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._shards)

    @property
    def nbytes(self) -> int:
        entries = (shard.header[name] for name, shard in self._shards.items())
        return sum(entry.end - entry.begin for entry in entries)

    def header(self, name: str) -> Header:
        shard = self._shard(name)
        dtype, shape, *_ = shard.header[name]
        if dtype not in KINDS:
            raise CheckpointError(
                f"{shard.path}: tensor {name!r} has dtype {dtype}; quantkit reads {', '.join(KINDS)}: "
                "use the unquantized checkpoint"
            )
        return Header(KINDS[dtype], shape)

    def tensor(self, name: str) -> Tensor:
        kind, shape = self.header(name)
        return Tensor(kind, shape, self._shards[name].array(name))

    def release(self, name: str) -> None:
        self._shard(name).release(name)

    def file_of(self, name: str) -> Path:
        return self._shard(name).path

    def _texts(self) -> Iterator[bytes]:
        for file in self.files.values():
            yield _read(cast(Path, file))

    def _sample(self, name: str) -> bytes:
        return self._shards[name].sample(name)

    def _shard(self, name: str) -> SafetensorsFile:
        shard = self._shards.get(name)
        if shard is None:
            raise CheckpointError(f"{self.path}: has no tensor {name!r}")
        return shard

    def _check_config(self) -> None:
        file = self.path / "config.json"
        if not isinstance(self._config.get("model_type"), str):
            raise CheckpointError(f"{file}: has no model_type; is this the folder of a language model?")
        for field in ("quantization_config", "quantization"):
            found = self._config.get(field)
            if found:
                method = found.get("quant_method") if isinstance(found, dict) else None
                raise UnsupportedError(
                    f"{file}: the checkpoint is already quantized ({field}: {method or 'method not named'}); "
                    "quantkit packs F16, BF16 and F32 weights: use the original checkpoint"
                )

    def _open_shards(self) -> dict[str, SafetensorsFile]:
        """Return the shard that holds each tensor, in the order of bytes."""
        if (self.path / SINGLE).exists():
            file = SafetensorsFile(self.path / SINGLE)
            return dict.fromkeys(file.header, file)
        if not (self.path / INDEX).exists():
            raise self._without_weights()
        weight_map = self._read_index()
        shards = {shard: SafetensorsFile(self.path / shard) for shard in sorted(set(weight_map.values()))}
        for name, shard in weight_map.items():
            if name not in shards[shard].header:
                raise CheckpointError(f"{self.path / shard}: has no tensor {name!r}, though {INDEX} says so")
        # Where a name stands in two shards, the index decides.
        return {
            name: file for shard, file in shards.items() for name in file.header if weight_map.get(name, shard) == shard
        }

    def _read_index(self) -> dict[str, str]:
        file = self.path / INDEX
        weight_map = _read_object(file).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{file}: has no weight_map")
        for shard in weight_map.values():
            if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise CheckpointError(f"{file}: {shard!r} is not the name of a file in this folder")
        missing = sorted(shard for shard in set(weight_map.values()) if not (self.path / shard).exists())
        if missing:
            raise CheckpointError(
                f"{self.path}: {len(missing)} of {len(set(weight_map.values()))} shards are missing "
                f"({', '.join(map(repr, missing[:3]))}{', ...' if len(missing) > 3 else ''}); finish the download"
            )
        return cast(dict[str, str], weight_map)

    def _without_weights(self) -> Exception:
        pickles = sorted(file.name for pattern in PICKLES for file in self.path.glob(pattern))
        if pickles:
            return UnsupportedError(
                f"{self.path}: its weights are pickles ({pickles[0]}), which can run code when they are read; "
                "use a safetensors version, or make one with transformers' save_pretrained"
            )
        if any(self.path.glob("model-*-of-*.safetensors")):
            return CheckpointError(f"{self.path / INDEX}: is missing; finish the download")
        return CheckpointError(f"{self.path}: has neither {SINGLE} nor {INDEX}")


def _read(file: Path) -> bytes:
    """Read a small file; raises `CheckpointError` naming it."""
    try:
        if file.stat().st_size > MAX_TEXT_BYTES:
            raise CheckpointError(f"{file}: is larger than {MAX_TEXT_BYTES} bytes")
        return file.read_bytes()
    except FileNotFoundError as cause:
        raise CheckpointError(f"{file}: is missing; is this the folder of a checkpoint?") from cause
    except OSError as cause:
        raise CheckpointError(f"{file}: cannot be read: {cause.strerror or cause}") from cause


def _read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object from a small file; raises `CheckpointError` naming it."""
    try:
        content = json.loads(_read(file))
    except (ValueError, RecursionError) as cause:
        raise CheckpointError(f"{file}: is not JSON; download it again") from cause
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: is not a JSON object")
    return content
