"""A checkpoint folder as Hugging Face lays it out: config.json, safetensors in one file or in shards, tokenizer files.

Opening reads headers and small JSON files alone, so whatever cannot work is refused at once: pickles, checkpoints of an
unknown quantization, truncated shards. What is quantized in one of the `schemes` is offered decoded, as if it had never
been. Whether the tensors fit the architecture is `ModelSource.check`'s question,
since only a recorded program knows what it needs; shards and tensors that are named and missing matter no sooner.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CheckpointError, QuantkitError, UnsupportedError
from quantkit.formats.json_files import read_file, read_object
from quantkit.formats.magic import Magic, magic_of
from quantkit.formats.safetensors.file import ALL, SafetensorsFile
from quantkit.formats.schemes import FIELDS, scheme_of
from quantkit.formats.schemes.floats import modelopt
from quantkit.formats.schemes.scheme import Part, Scheme
from quantkit.formats.source import ModelSource
from quantkit.formats.vocabularies import VOCABULARIES, with_tokenizer
from quantkit.tensor import GroupScales, Tensor, TensorSpec

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MODELOPT = "hf_quant_config.json"
"""Says how NVIDIA's checkpoints are quantized, where config.json does not."""
TEXT = "text_config"
"""Where multimodal models say what their text part is."""
PIPELINE = "model_index.json"
"""What the diffusers library lays out has this file in place of config.json."""
NO_MODELS: Mapping[str, tuple[type[QuantkitError], str]] = MappingProxyType(
    {
        PIPELINE: (UnsupportedError, "is a diffusion pipeline ({found}), no language model"),
        "adapter_config.json": (
            UnsupportedError,
            "is an adapter ({found}) for another model; merge it into that one (in peft: merge_and_unload)",
        ),
        "*.gguf": (CheckpointError, "holds GGUF files; name one of them, such as {found}"),
        "snapshots/*/config.json": (CheckpointError, "is a cache of the hub; name the model in it, {parent}"),
        "consolidated*": (
            UnsupportedError,
            "is in its maker's own format ({found}), without config.json; use the Hugging Face version of the model",
        ),
        "*/config.json": (CheckpointError, "has no config.json; is it {parent} that you mean?"),
    }
)
"""What is found where there is no config.json -> the error that says what the folder is; the first that fits counts."""
SIDECARS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    *VOCABULARIES,
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
KINDS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
NUMBERED = re.compile(r"(.*)-(\d+)-of-(\d+)(\.\w+)?")
"""Name of a shard, whose number and count stand in it."""


class FolderSource(ModelSource):
    """An open checkpoint folder.

    Raises
    ------
    CheckpointError
        When config.json or all weights are missing, or a file is truncated or damaged.
    UnsupportedError
        When the weights are pickles or quantized in no known scheme, or the folder is no language model's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._config, self._scheme = read_config(path)
        self._missing: dict[str, str] = {}
        self._shards = self._open_shards()
        self._parts = self._scheme.encoded([*self._shards, *self._missing]) if self._scheme else {}
        hidden = {part for parts in self._parts.values() for part in parts}
        if self._scheme:
            hidden.update(name for name in self._shards if name.endswith(self._scheme.ignored))
        whole = {parts[0]: name for name, parts in self._parts.items()}
        self._names = tuple(
            whole.get(name, name)
            for name in dict.fromkeys([*self._shards, *whole])
            if name in whole or name not in hidden
        )

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    @cached_property
    def files(self) -> Mapping[str, bytes | Path]:
        held: dict[str, bytes | Path] = {**self._sidecars, CONFIG: self.path / CONFIG}
        found = with_tokenizer(held, self.path)
        return MappingProxyType({name: content for name, content in found.items() if name != CONFIG})

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    @property
    def nbytes(self) -> int:
        entries = (shard.header[name] for name, shard in self._shards.items())
        return sum(entry.end - entry.begin for entry in entries)

    def spec(self, name: str) -> TensorSpec:
        if self._scheme and name in self._parts:
            with self._decoding(name):
                return TensorSpec(name, self._scheme.shape(self._parts_of(name)), kind=self._scheme.kind)
        shard = self._shard(name)
        dtype, shape, *_ = shard.header[name]
        if dtype not in KINDS:
            raise CheckpointError(
                f"{shard.path}: tensor {name!r} has dtype {dtype}; quantkit reads {', '.join(KINDS)}: "
                "use the unquantized checkpoint"
            )
        return TensorSpec(name, shape, kind=KINDS[dtype])

    def tensor(self, name: str, *, copy: bool = False) -> Tensor:
        spec = self.spec(name)
        return Tensor(spec.kind, spec.shape, np.asarray(self.entries(name, ALL, copy=copy), order="C"))

    def entries(self, name: str, wanted: slice, *, copy: bool = False) -> NDArray[Any]:
        if self._scheme and name in self._parts:
            with self._decoding(name):
                return self._scheme.decode(self._parts_of(name, copy=copy), wanted)
        return self._shard(name).array(name, wanted, copy=copy)

    def group_scales(self, name: str, wanted: slice) -> GroupScales | None:
        if not self._scheme or name not in self._parts:
            return None
        with self._decoding(name):
            return self._scheme.group_scales(self._parts_of(name, copy=True), wanted)

    def file_of(self, name: str) -> Path:
        return self._shard(self._parts.get(name, (name,))[0]).path

    def _evidence(self) -> Iterator[bytes]:
        said = (self.path / name for name in (CONFIG, MODELOPT))
        for file in (*filter(Path.exists, said), *self._sidecars.values()):
            yield file.name.encode()
            yield read_file(file)
        for shard in dict.fromkeys(self._shards.values()):
            yield shard.identity()

    @property
    def _sidecars(self) -> dict[str, Path]:
        return {name: self.path / name for name in SIDECARS if _exists(self.path / name)}

    def _why_missing(self, name: str) -> str:
        return self._missing.get(name, "")

    @contextmanager
    def _decoding(self, name: str) -> Iterator[None]:
        """Say of which tensor and file a scheme's error is."""
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # those who read refuse numbers beyond f32
                yield
        except ValueError as cause:
            raise CheckpointError(f"{self.file_of(name)}: tensor {name!r} cannot be decoded: {cause}") from cause

    def _parts_of(self, name: str, *, copy: bool = False) -> list[Part]:
        """Return the stored tensors that a tensor is decoded from."""
        shards = {part: self._shard(part) for part in self._parts[name]}
        return [Part(part, shard.header[part], partial(shard.array, part, copy=copy)) for part, shard in shards.items()]

    def _shard(self, name: str) -> SafetensorsFile:
        shard = self._shards.get(name)
        if shard is None:
            raise CheckpointError(self._why_missing(name) or f"{self.path}: has no tensor {name!r}")
        return shard

    def _open_shards(self) -> dict[str, SafetensorsFile]:
        """Return the file that holds each tensor, in the order of bytes."""
        if _exists(self.path / SINGLE):
            file = SafetensorsFile(self.path / SINGLE)
            return dict.fromkeys(file.header, file)
        if not _exists(self.path / INDEX):
            files = [SafetensorsFile(file) for file in self._unindexed()]
            return {name: file for file in files for name in file.header}
        weight_map = read_index(self.path / INDEX)
        named = {shard for shard in weight_map.values() if _is_file_name(shard)}
        shards = {shard: SafetensorsFile(self.path / shard) for shard in sorted(named) if (self.path / shard).exists()}
        if not shards:
            raise CheckpointError(f"{self.path}: has none of the files that {INDEX} names; finish the download")
        for name, shard in weight_map.items():
            if shard not in named:
                self._missing[name] = f"{self.path / INDEX}: {shard!r:.100} is not the name of a file in this folder"
            elif shard not in shards:
                self._missing[name] = f"{self.path / shard}: is missing, with tensor {name!r}; finish the download"
            elif name not in shards[shard].header:
                self._missing[name] = f"{self.path / shard}: has no tensor {name!r}, though {INDEX} says so"
        # Where a name stands in two files, the index decides.
        return {
            name: file for shard, file in shards.items() for name in file.header if weight_map.get(name, shard) == shard
        }

    def _unindexed(self) -> list[Path]:
        """Return the safetensors files of a folder that has no index: one, or all shards of a set."""
        kinds = {file: magic_of(file) for file in sorted(self.path.iterdir()) if file.is_file()}
        files = [file for file, kind in kinds.items() if kind is Magic.SAFETENSORS]
        shards = [NUMBERED.fullmatch(file.name) for file in files]
        if len(files) == 1 and not shards[0]:
            return files
        sets = {shard and shard.group(1, 3, 4) for shard in shards}
        if files and len(sets) == 1 and shards[0] and len(files) == int(shards[0][3]):
            return files
        if files:
            raise CheckpointError(
                f"{self.path}: has neither {SINGLE} nor {INDEX}, and {files[0].name!r} is not all: finish the download"
            )
        raise without_weights(self.path, {file.name: kind for file, kind in kinds.items()})


def _exists(file: Path) -> bool:
    """Whether there is a file; raises `CheckpointError` for a link to one that is missing, as in a pruned cache."""
    if file.is_symlink() and not file.exists():
        raise CheckpointError(f"{file}: is a link to {file.readlink()}, which is missing; download it again")
    return file.exists()


def read_config(folder: Path) -> tuple[dict[str, Any], Scheme | None]:
    """Return `config.json` of a checkpoint folder, without what it says of quantization, and the scheme that it names.

    Raises
    ------
    CheckpointError
        It is missing, damaged, or no model's.
    UnsupportedError
        The scheme is unknown, or the folder is that of something else.
    """
    file = folder / CONFIG
    if not _exists(file):
        raise _without_config(folder)
    config = read_object(file)
    if not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"{file}: has no model_type; is this the folder of a language model?")
    scheme = _read_scheme(folder, config)
    return _unquantized(config) if scheme else config, scheme


def _without_config(folder: Path) -> QuantkitError:
    """Return the error that says what a folder is that has no config.json."""
    for pattern, (error, reason) in NO_MODELS.items():
        if found := min(folder.glob(pattern), default=None):
            return error(f"{folder}: {reason.format(found=found.relative_to(folder), parent=found.parent)}")
    return CheckpointError(f"{folder / CONFIG}: no such file; is this the folder of a model?")


def _unquantized(config: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` without what it says of quantization, of the model or of its text part."""
    left = {key: value for key, value in config.items() if key not in FIELDS}
    return left | ({TEXT: _unquantized(text)} if isinstance(text := left.get(TEXT), dict) else {})


def _read_scheme(folder: Path, config: Mapping[str, Any]) -> Scheme | None:
    """Return the scheme that config.json names, of the model or its text part, or a file of ModelOpt beside it."""
    file, text = folder / CONFIG, config.get(TEXT)
    if not any(config.get(field) for field in FIELDS):
        if isinstance(text, dict) and any(text.get(field) for field in FIELDS):
            config = text
        elif (folder / MODELOPT).exists():
            file = folder / MODELOPT
            config = {FIELDS[0]: modelopt.config_of(read_object(file))}
    try:
        return scheme_of(config)
    except UnsupportedError as cause:
        raise UnsupportedError(f"{file}: {cause}") from None


def read_index(file: Path) -> dict[str, str]:
    """Return which tensor is in which file, as an index says; raises `CheckpointError` when it does not say so."""
    weight_map = read_object(file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{file}: has no weight_map")
    return {name: str(shard) for name, shard in weight_map.items()}


def without_weights(where: str | Path, kinds: Mapping[str, Magic]) -> QuantkitError:
    """Return the error that says what is there in place of safetensors; `kinds` says what each file is."""
    for name, kind in kinds.items():
        if kind is Magic.PICKLE:
            return UnsupportedError(
                f"{where}: its weights are pickles ({name}), which can run code when they are read; "
                "use a safetensors version, or make one with transformers' save_pretrained"
            )
        if kind is Magic.GGUF:
            return CheckpointError(f"{where}: holds GGUF files; name one of them, such as {Path(where, name)}")
    return CheckpointError(f"{where}: has neither {SINGLE} nor {INDEX}")


def _is_file_name(text: str) -> bool:
    """Whether a text from an index names a file of the folder itself, and no path out of it."""
    return Path(text).name == text and "\0" not in text
