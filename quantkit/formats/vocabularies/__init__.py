"""Vocabularies that are no `tokenizer.json`: each is rebuilt as one, so that the rest of quantkit knows a single file.

`sentencepiece.py`, `tiktoken.py`, `tekken.py` and `byte_level.py` read a kind each; a `tokenizer.model` is of one of
the first two, which its contents decide. Vocabularies in GGUF files are read in `gguf/`. What a checkpoint's further
files say about tokens is read in the generation room.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.errors import CheckpointError
from quantkit.formats.json_files import parse_object, read_file
from quantkit.formats.magic import Magic

if TYPE_CHECKING:
    from quantkit.formats.vocabularies.rebuilt import Rebuilt

Files = Mapping[str, bytes | Path]
"""Name -> contents or path."""

TOKENIZER, CONFIG, NAMES = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
ADDED, FLAGS = "added_tokens.json", "added_tokens_decoder"
VOCABULARIES = ("tekken.json", "tokenizer.model", "tiktoken.model", "qwen.tiktoken", "vocab.json", "merges.txt")
"""Files that hold a vocabulary; the first that is there counts."""


def single(file: Path) -> Files:
    """Return the files of a checkpoint that has nothing but one vocabulary; what the file is, its contents decide.

    Raises
    ------
    CheckpointError
        When it is no vocabulary, or a damaged one.
    UnsupportedError
        When it is of a kind that quantkit does not read.
    """
    from quantkit.formats.vocabularies import tiktoken

    content = read_file(file)
    signs = {
        "tekken.json": content.lstrip()[:1] == b"{" and b'"token_bytes"' in content,
        TOKENIZER: content.lstrip()[:1] == b"{" and b'"vocab"' in content,
        "tokenizer.model": tiktoken.looks_like_ranks(content) or content[:1] == b"\n",  # so begins a message of pieces
    }
    if (name := next((name for name, shown in signs.items() if shown), None)) is None:
        raise CheckpointError(f"{file}: is {Magic.UNKNOWN.value}")
    return with_tokenizer({name: file}, file.parent)


def with_tokenizer(files: Files, origin: Path) -> Files:
    """Return the files of a checkpoint with a `tokenizer.json` among them, if they hold a vocabulary of any kind.

    What the vocabulary says of special tokens is added to `tokenizer_config.json`, where no file says it.

    Parameters
    ----------
    files : Mapping
        Name -> contents or path; of `config.json`, if it is there, the type of the model.
    origin : Path
        Folder that they belong to; errors name it.

    Raises
    ------
    CheckpointError
        When the vocabulary is damaged or incomplete.
    UnsupportedError
        When it is of a kind that quantkit does not read.
    """
    name = next((name for name in VOCABULARIES if name in files), None)
    if TOKENIZER in files or name is None:
        return files
    config, names = (_object(files, file, origin) for file in (CONFIG, NAMES))
    found = _rebuilt(name, files, origin, config)
    said: dict[str, Any] = {text: token for text, token in found.named.items() if text not in config | names}
    if ADDED in files and FLAGS not in config:
        said |= _flags(_object(files, ADDED, origin))
    changed = {CONFIG: json.dumps({**config, **said}, ensure_ascii=False).encode()} if said else {}
    return {**files, TOKENIZER: found.tokenizer.to_str().encode(), **changed}


def _rebuilt(name: str, files: Files, origin: Path, config: Mapping[str, Any]) -> Rebuilt:
    from quantkit.formats.vocabularies import byte_level, sentencepiece, tekken, tiktoken

    held, content = files[name], _content(files, name, origin)
    file = held if isinstance(held, Path) else origin / name
    if name in ("vocab.json", "merges.txt"):
        model_type = str(_object(files, "config.json", origin).get("model_type", ""))
        vocab, merges = (_content(files, part, origin) for part in ("vocab.json", "merges.txt"))
        return byte_level.rebuilt(vocab, merges, origin / "vocab.json", config, model_type)
    if name == "tekken.json":
        return tekken.rebuilt(content, file, config)
    if name != "tokenizer.model" or tiktoken.looks_like_ranks(content):
        return tiktoken.rebuilt(content, file, config)
    return sentencepiece.rebuilt(content, file, config)


def _flags(added: Mapping[str, Any]) -> dict[str, Any]:
    """Say how added tokens are found: in the text as it is, not normalized. Damaged ids are left to be refused."""
    if not added or not all(type(token) is int for token in added.values()):
        return {}
    return {FLAGS: {str(token): {"content": text, "normalized": False} for text, token in added.items()}}


def _content(files: Files, name: str, origin: Path) -> bytes:
    held = files.get(name)
    if held is None:
        raise CheckpointError(f"{origin / name} is missing: finish the download")
    return held if isinstance(held, bytes) else read_file(held)


def _object(files: Files, name: str, origin: Path) -> dict[str, Any]:
    return parse_object(_content(files, name, origin), origin / name) if name in files else {}
