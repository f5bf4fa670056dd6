"""The vocabulary: a `tokenizer.json` opened with the `tokenizers` library, with the tokens that other files add.

This is the only door to the library in this room. Behind it, errors and panics of the library become errors that name
the file, and tokens are what the whole checkpoint says they are: those that only other files list have their ids, and
what is declared special, or ends a turn by its text, is one token however `tokenizer.json` marks it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from quantkit.errors import CheckpointError, GenerationError, QuantkitError, notice
from quantkit.formats.vocabularies.end_tokens import end_tokens
from quantkit.generation.text.files import TextFiles
from quantkit.generation.text.growth import MOST_GROWTH, Normalizer, check_growth
from quantkit.generation.text.special_tokens import SpecialTokens

FILE = "tokenizer.json"
MOST_UNASSIGNED = 4096
"""Ids between the vocabulary and the tokens that another file adds, at most."""
MOST_LEADING = 16
"""Tokens that a post-processor puts before a text, at most."""

_NORMALIZED_TOKEN = re.compile(r'"normalized"\s*:\s*true'), re.compile(r"\\u00[67]")
"""What a file holds, the one or the other, of a token which the normalizer is applied to. The second is an escaped
letter. Two patterns, since each begins with fixed characters, which are found four times as fast."""

_log = logging.getLogger(__name__)


class Vocabulary:
    """Texts and ids of a checkpoint's tokens.

    Parameters
    ----------
    files : TextFiles
        Those of the checkpoint.
    special : SpecialTokens
        What they declare.
    rows : int or None
        Tokens that the model knows: a declared special token that has no id anywhere gets the next one, as in
        transformers, if the model has a row for it.

    Attributes
    ----------
    file : Path
        `tokenizer.json`.
    ends : frozenset of int
        Tokens that end an answer by their text, see `end_tokens`.
    leading : tuple of int
        Tokens that the post-processor puts before a text.

    Raises
    ------
    CheckpointError
        When `tokenizer.json` is missing or damaged, or an added token cannot have its id.
    """

    def __init__(self, files: TextFiles, special: SpecialTokens, rows: int | None = None) -> None:
        self.file, text = files.path(FILE), files.text(FILE)
        if text is None:
            raise CheckpointError(f"{self.file} is missing, and any other vocabulary: finish the download")
        with self._errors("not a tokenizer that the tokenizers library can read", CheckpointError):
            if any(pattern.search(text) for pattern in _NORMALIZED_TOKEN):
                self._check_added(json.loads(text))
            self._library = Tokenizer.from_str(text)
            self._library.no_truncation()
            self._library.no_padding()
            self.leading = self._leading()
            self._library.post_processor = None
            self._normalizer = Normalizer(_section(self._library.normalizer), self.file)
            check_growth(_section(self._library.pre_tokenizer), "pre-tokenizer", self.file)
            check_growth(self.decoder, "decoder", self.file)
            self._add(special)
            self.ends = self._mark(special, rows)

    @property
    def decoder(self) -> Mapping[str, Any] | None:
        """The section `decoder` of the file."""
        return _section(self._library.decoder)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of all special tokens."""
        return frozenset(token for token, entry in self._added.items() if entry.special)

    def __len__(self) -> int:
        return self._library.get_vocab_size()

    def id_of(self, text: str) -> int | None:
        """Return the id of the token with this text; None where there is none."""
        return self._library.token_to_id(text)

    def text_of(self, token: int) -> str | None:
        """Return how a token is spelled in the file; None for an id without a token."""
        return self._library.id_to_token(token) if 0 <= token < 2**32 else None

    def encode(self, text: str, *, split_special_tokens: bool) -> list[int]:
        """Return the ids of a text, nothing added; raises `GenerationError` where the library fails on it."""
        with self._errors("the tokenizer fails on this text", GenerationError):
            if self._normalizer.explodes(text):
                raise GenerationError(
                    f"{self.file}: its normalizer makes this text more than {MOST_GROWTH} times as long"
                )
            library = self._splitting if split_special_tokens else self._library
            return library.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Iterable[int], *, skip_special_tokens: bool) -> str:
        """Return the text of some ids; raises `GenerationError` where the library fails on them."""
        known = [int(token) for token in tokens if self.text_of(token) is not None]
        with self._errors("the tokenizer fails on these tokens", GenerationError):
            return self._library.decode(known, skip_special_tokens=skip_special_tokens)

    @cached_property
    def _splitting(self) -> Tokenizer:
        """The same tokenizer, to which a special token's spelling is ordinary text.

        A copy, since the library keeps this in a flag of the tokenizer, and threads share ours.
        """
        copy = Tokenizer.from_str(self._library.to_str())
        copy.encode_special_tokens = True
        return copy

    @property
    def _added(self) -> dict[int, AddedToken]:
        return self._library.get_added_tokens_decoder()

    def _add(self, special: SpecialTokens) -> None:
        """Add the tokens that other files list, with their ids."""
        added = self._added
        new, changed = {}, []
        for declared, entry in special.added.items():
            self._check_token(entry.content, self._normalizer)
            token = self.id_of(entry.content)
            if token is None:
                new[declared] = entry
            elif token not in added:
                changed.append(entry)
            elif special.has_flags:
                entry.special |= added[token].special  # what was special once stays so in the library
                if repr(entry) != repr(added[token]):  # tokens of the same text are equal to the library
                    changed.append(entry)
        self._library.add_tokens([*changed, *self._in_order(new, special.file)])
        for token, entry in new.items():
            if self.id_of(entry.content) not in (token, None):
                raise CheckpointError(f"{special.file}: {entry.content!r} cannot have the id {token} in {FILE}")

    def _in_order(self, new: Mapping[int, AddedToken], file: Path) -> Iterator[AddedToken]:
        """Yield new tokens, the lowest id first, with a silent one for each id between: the library counts on."""
        if not new:
            return
        following = self._next_id()
        for token, entry in new.items():
            if token < following:
                notice(_log, f"{file}: the id {token} of {entry.content!r} is another token's in {FILE}")
                continue
            if token - following > MOST_UNASSIGNED:
                raise CheckpointError(f"{file}: {entry.content!r} has the id {token}, far behind the other tokens")
            yield from (AddedToken(f"<|no token {gap}|>", special=True) for gap in range(following, token))
            yield entry
            following = token + 1

    def _mark(self, special: SpecialTokens, rows: int | None) -> frozenset[int]:
        """Mark what is declared special, and what ends an answer, as special tokens; return the latter's ids."""
        added = self._added
        ends = end_tokens(self.id_of, lambda token: token in added and added[token].special)
        marked, missing = [], []
        for text in dict.fromkeys([*special.special, *ends]):
            token = self.id_of(text)
            if token is None:
                missing.append(text)
            elif token not in added:
                marked.append(AddedToken(text, special=True, normalized=False))
            elif not added[token].special:
                added[token].special = True
                marked.append(added[token])
        room = max(0, rows - self._next_id()) if missing and rows is not None else 0
        self._library.add_special_tokens([*marked, *missing[:room]])
        return frozenset(ends.values())

    def _next_id(self) -> int:
        return max(self._library.get_vocab().values(), default=-1) + 1

    def _check_added(self, content: Mapping[str, Any]) -> None:
        """Refuse a file whose normalizer explodes on one of its own tokens: the library tries them when it opens it."""
        normalizer = Normalizer(content.get("normalizer"), self.file)
        for entry in content.get("added_tokens") or ():
            self._check_token(entry["content"], normalizer)

    def _check_token(self, text: str, normalizer: Normalizer) -> None:
        if normalizer.explodes(text):
            raise CheckpointError(
                f"{self.file}: its normalizer makes the token {text!r:.60} more than {MOST_GROWTH} times as long"
            )

    def _leading(self) -> tuple[int, ...]:
        found = _leading_ids(_section(self._library.post_processor))
        if len(found) > MOST_LEADING:
            raise CheckpointError(f"{self.file}: its post-processor puts {len(found)} tokens before a text")
        return tuple(found)

    @contextmanager
    def _errors(self, what: str, kind: type[QuantkitError]) -> Iterator[None]:
        try:
            yield
        except QuantkitError:
            raise
        except Exception as cause:  # the library's have no class of their own
            raise kind(f"{self.file}: {what}: {cause}") from cause
        except BaseException as cause:
            if type(cause).__name__ != "PanicException":  # of Rust: no Exception, and not to be imported
                raise
            raise kind(f"{self.file}: {what}: {cause}") from cause


def _section(part: Any) -> dict[str, Any] | None:
    """Return the JSON of a part of the library's tokenizer."""
    return None if part is None else json.loads(part.__getstate__())


def _leading_ids(section: Mapping[str, Any] | None) -> Sequence[int]:
    """Return the ids that a `post_processor` section puts before a single text; what it puts behind is left out."""
    match section:
        case {"type": "Sequence", "processors": [*parts]}:
            return [token for part in reversed(parts) for token in _leading_ids(part)]
        case {"type": "TemplateProcessing", "single": [*pieces], "special_tokens": dict(special)}:
            found: list[int] = []
            for piece in pieces:
                if "SpecialToken" not in piece or len(found) > MOST_LEADING:
                    break
                found += special[piece["SpecialToken"]["id"]]["ids"]
            return found
        case {"type": "BertProcessing" | "RobertaProcessing", "cls": [_, int(token)]}:
            return [token]
        case _:
            return []
