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

if TYPE_CHECKING:
    from quantkit.formats.vocabularies.rebuilt import Rebuilt

Files = Mapping[str, bytes | Path]
"""Name -> contents or path."""

TOKENIZER, CONFIG, NAMES = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
VOCABULARIES = ("tekken.json", "tokenizer.model", "tiktoken.model", "qwen.tiktoken", "vocab.json", "merges.txt")
"""Files that hold a vocabulary; the first that is there counts."""


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
    named = {name: text for name, text in found.named.items() if name not in config and name not in names}
    said = {CONFIG: json.dumps({**config, **named}, ensure_ascii=False).encode()} if named else {}
    return {**files, TOKENIZER: found.tokenizer.to_str().encode(), **said}


def _rebuilt(name: str, files: Files, origin: Path, config: Mapping[str, Any]) -> Rebuilt:
    from quantkit.formats.vocabularies import byte_level, sentencepiece, tekken, tiktoken

    file, content = origin / name, _content(files, name, origin)
    if name in ("vocab.json", "merges.txt"):
        model_type = str(_object(files, "config.json", origin).get("model_type", ""))
        vocab, merges = (_content(files, part, origin) for part in ("vocab.json", "merges.txt"))
        return byte_level.rebuilt(vocab, merges, origin / "vocab.json", config, model_type)
    if name == "tekken.json":
        return tekken.rebuilt(content, file, config)
    if name != "tokenizer.model" or tiktoken.looks_like_ranks(content):
        return tiktoken.rebuilt(content, file, config)
    return sentencepiece.rebuilt(content, file, config)


def _content(files: Files, name: str, origin: Path) -> bytes:
    held = files.get(name)
    if held is None:
        raise CheckpointError(f"{origin / name} is missing: finish the download")
    return held if isinstance(held, bytes) else read_file(held)


def _object(files: Files, name: str, origin: Path) -> Mapping[str, Any]:
    return parse_object(_content(files, name, origin), origin / name) if name in files else {}
