"""The text that a model is calibrated on, as windows of tokens.

`layers.py` runs a model over them. What is measured later should be other text.

The built-in text, `builtin.jsonl`, is for those who have none at hand: 117,000 tokens (as SmolLM2 counts, and more than
100,000 with any tokenizer of today) in 291 documents, a line each. Of each `kind` there is, in tokens: prose 54 %
(encyclopedia, news, stories, letters, instructions, reviews, law, reports), language 14 % (56 passages in 30
languages), code 13 %, dialogue 12 % and mathematics 7 %. The kinds are interleaved, so that a part of the text has the
mix of the whole.

It was written for quantkit, mostly by a language model, and comes under quantkit's licence. Documents with a `source`
are in the public domain: passages of old books, and The World Factbook. Nothing is from a benchmark or from Wikipedia.
People and firms in news, letters, reports and dialogues are invented.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from quantkit.errors import CheckpointError, GenerationError, OptionError
from quantkit.formats.magic import Magic, magic_of
from quantkit.formats.output import as_json
from quantkit.formats.source import ModelSource
from quantkit.generation.text.plain import decode_text
from quantkit.generation.text.tokenizer import Tokenizer
from quantkit.models.program import Program
from quantkit.quantization.calibration import BUILTIN

WINDOW_TOKENS = 512
"""Tokens of a window, or what a model has learned positions for if that is less."""
MOST_WINDOWS = 128
"""Windows that are taken of a text, at most: 65,536 tokens."""
LEAST_TOKENS = 1024
"""Tokens of a text without which it says too little of any model."""
MOST_BYTES, PASSAGE_BYTES = 1 << 23, 1 << 16
"""Bytes of a text that are read at most, and of each passage that is taken of a larger one."""

Document = str | list[dict[str, str]]
"""A text, or the messages of a dialogue."""

NO_TEXTS = {Magic.GGUF: ", no text; an importance file goes with --imatrix", Magic.LFS_POINTER: ""}
"""What a file may be that was given for a text -> what is said besides."""
DATE = datetime(2025, 1, 1)
"""What chat templates that tell the date are told, so that a model is packed to the same bytes on each day."""


@dataclass(frozen=True)
class CalibrationText:
    """A text as a model reads it.

    Attributes
    ----------
    name : str
        Of its file.
    windows : list of list of int
        Token ids, as many in each window.
    digest : str
        SHA-256 of the text.
    """

    name: str
    windows: list[list[int]]
    digest: str

    @property
    def tokens(self) -> int:
        """Tokens of all windows."""
        return len(self.windows) * len(self.windows[0])

    @property
    def about(self) -> dict[str, Any]:
        """What the manifest of a packed model says of it."""
        return {"text": self.name, "sha256": self.digest, "tokens": self.tokens}


def read_calibration_text(path: str | os.PathLike[str], source: ModelSource, program: Program) -> CalibrationText:
    """Cut a text into windows, spread evenly over it; each begins as the model's texts begin.

    Parameters
    ----------
    path : path
        UTF-8 text; a `.jsonl` file with a text or the messages of a dialogue in each line; or `builtin`.
    source : ModelSource
        The model, whose tokenizer reads the text.
    program : Program
        The model's: it may know no more than some tokens and positions.

    Raises
    ------
    OptionError
        The text cannot be read, is damaged or too short, or the model has no tokenizer.
    CheckpointError
        The tokenizer has tokens that the model lacks, and the text has one of these.
    """
    if "tokenizer.json" not in source.files:
        raise OptionError(f"calibration: {source.path} has no tokenizer.json, so it cannot read a text")
    tokenizer = Tokenizer({**source.files, "config.json": as_json(source.config)}, source.path)
    file, name = _file(path), BUILTIN if os.fspath(path) == BUILTIN else Path(path).name
    ids = list(_tokens(_documents(file), tokenizer))
    if ids and max(ids) >= program.vocab_size:
        known = f"the model's vocabulary has {program.vocab_size}"
        raise CheckpointError(f"{source.path}: its tokenizer reads the text as token {max(ids)}, but {known}")
    length = min(WINDOW_TOKENS, program.learned_positions or WINDOW_TOKENS)
    if len(ids) < LEAST_TOKENS:
        raise OptionError(
            f"calibration: {file} has {len(ids)} tokens; at least {LEAST_TOKENS} are needed, "
            f"and {MOST_WINDOWS * length} are better"
        )
    begin = tokenizer.encode("")
    size = length - len(begin)
    count = min(MOST_WINDOWS, len(ids) // size)
    starts = np.linspace(0, len(ids) - size, count).astype(int).tolist()
    windows = [begin + ids[start : start + size] for start in starts]
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return CalibrationText(name, windows, digest)


def check_calibration_file(path: str | os.PathLike[str]) -> None:
    """Raise what `read_calibration_text` raises of a file that cannot be read; no model is needed."""
    _documents(_file(path))


def _file(path: str | os.PathLike[str]) -> Path:
    builtin = os.fspath(path) == BUILTIN
    return Path(__file__).with_name("builtin.jsonl") if builtin else Path(os.path.expanduser(path))


def _documents(file: Path) -> list[Document]:
    """Return what a file holds: one text, or in each line of a `.jsonl` file a text or a dialogue."""
    origin = f"calibration: {file}"
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # a pipe could not be read again when packing goes on
            raise OptionError(f"{origin}: is not a regular file")
        if (kind := magic_of(file, OptionError)) in NO_TEXTS:
            raise OptionError(f"{origin}: is {kind.value}{NO_TEXTS[kind]}")
        if file.suffix.lower() == ".jsonl":
            lines = decode_text(file.read_bytes(), origin).split("\n")
            step = file.stat().st_size // MOST_BYTES + 1
            taken = list(enumerate(lines, 1))[::step]
            return [_document(line, f"{origin}: line {number}") for number, line in taken if line.strip()]
        return [decode_text(_passages(file), origin)]
    except OSError as error:
        raise OptionError(f"{origin}: {error.strerror}") from error


def _passages(file: Path) -> bytes:
    """Return a file's bytes, or of a large one whole lines, or at least whole characters, from all over it."""
    size = file.stat().st_size
    if size <= MOST_BYTES:
        return file.read_bytes()
    found = []
    with file.open("rb") as opened:
        for start in np.linspace(0, size - PASSAGE_BYTES, MOST_BYTES // PASSAGE_BYTES).astype(int).tolist():
            opened.seek(start)
            passage = opened.read(PASSAGE_BYTES)
            _, _, lines = passage.rpartition(b"\n")[0].partition(b"\n")
            found.append(lines or passage.decode(errors="ignore").encode())
    return b"\n".join(found)


def _document(line: str, origin: str) -> Document:
    """Read a line as data sets for mlx-lm have them.

    It is `{"text": ...}`, or a dialogue: `{"messages": [{"role": ..., "content": ...}, ...]}`, or
    `{"prompt": ..., "completion": ...}`.
    """
    try:
        held = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{origin}: is not JSON: {error}") from None
    match held:
        case {"text": str(text)}:
            return text + "\n\n"
        case {"prompt": str(prompt), "completion": str(completion)}:
            return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        case {"messages": [_, *_] as messages} if all(map(_is_message, messages)):
            return [{key: it[key] for key in ("role", "content")} for it in messages]
    raise OptionError(f"{origin}: has neither a text, nor messages of a role and a content, nor prompt and completion")


def _is_message(held: object) -> bool:
    match held:
        case {"role": str(), "content": str()}:
            return True
    return False


def _encode(text: str, tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def _tokens(documents: Sequence[Document], tokenizer: Tokenizer) -> Iterator[int]:
    """Yield the tokens of all documents; dialogues as the model's template writes them, if one takes them."""
    for document in documents:
        if isinstance(document, str):
            yield from _encode(document, tokenizer)
            continue
        try:
            written = tokenizer.apply_chat_template(document, add_generation_prompt=False, now=DATE)
        except GenerationError:
            said = "".join(f"{it['role'].capitalize()}: {it['content']}\n\n" for it in document)
            yield from _encode(said, tokenizer)
        else:
            yield from tokenizer.encode(written, add_special_tokens=False)
