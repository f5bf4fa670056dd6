"""Special tokens as the files beside `tokenizer.json` declare them: by name, by id, or just as special.

Three files have grown over the years, and are read as transformers reads them:

- `tokenizer_config.json` names tokens (`bos_token`, `image_token`, the entries of `extra_special_tokens`), lists more
  without a name (`additional_special_tokens`), and gives ids and flags in `added_tokens_decoder`.
- `special_tokens_map.json` names and lists in the same way. It decides where the config has no `added_tokens_decoder`;
  else it only adds names that the config does not mention.
- `added_tokens.json` gives ids. It counts where the config has no `added_tokens_decoder`.

Which of them a vocabulary has, and adding those that it lacks, is `vocabulary.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from quantkit.errors import CheckpointError
from quantkit.generation.generation_config import LARGEST_TOKEN_ID
from quantkit.generation.text.files import TextFiles

CONFIG, NAMES, IDS = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"


@dataclass(frozen=True)
class SpecialTokens:
    """What a checkpoint declares.

    Attributes
    ----------
    named : Mapping of str to str
        `bos_token`, `eos_token` and any other name -> the token's text.
    unnamed : tuple of str
        Texts of further special tokens.
    added : Mapping of int to AddedToken
        Id -> token, ascending.
    has_flags : bool
        Whether the file says how the tokens of `added` are matched; else those are guesses, for tokens that
        `tokenizer.json` does not have.
    file : Path
        Where `added` stands; errors name it.
    """

    named: Mapping[str, str]
    unnamed: tuple[str, ...]
    added: Mapping[int, AddedToken]
    has_flags: bool
    file: Path

    @classmethod
    def read(cls, files: TextFiles) -> SpecialTokens:
        """Read the files; raises `CheckpointError` where one is damaged or a token's id or text makes no sense."""
        config, names = files.json(CONFIG), files.json(NAMES)
        has_flags = config.get("added_tokens_decoder") is not None
        merged = {**names, **config} if has_flags else {**config, **names}
        unnamed = tuple(dict.fromkeys(_unnamed(config) + _unnamed(names)))
        special = {*_named(merged).values(), *unnamed}
        if has_flags:
            file = files.path(CONFIG)
            added = _from_decoder(config["added_tokens_decoder"], file)
        else:
            file = files.path(IDS)
            added = _from_ids(files.json(IDS), special, file)
        return cls(_named(merged), unnamed, dict(sorted(added.items())), has_flags, file)

    @property
    def special(self) -> tuple[str, ...]:
        """Texts of all that are declared special, by name or without."""
        return tuple(dict.fromkeys([*self.named.values(), *self.unnamed]))

    @property
    def variables(self) -> dict[str, Any]:
        """Variables of a chat template: the named tokens, and the list `additional_special_tokens`."""
        return {"additional_special_tokens": list(self.unnamed), **self.named}


def _named(config: Mapping[str, Any]) -> dict[str, str]:
    extra = config.get("extra_special_tokens")
    entries = {name: value for name, value in config.items() if name.endswith("_token")}
    texts = {name: _text(value) for name, value in (entries | (extra if isinstance(extra, dict) else {})).items()}
    return {name: text for name, text in texts.items() if text}


def _unnamed(config: Mapping[str, Any]) -> list[str]:
    listed = [config.get(field) for field in ("additional_special_tokens", "extra_special_tokens")]
    texts = (_text(entry) for entries in listed if isinstance(entries, list) for entry in entries)
    return [text for text in texts if text]


def _text(token: Any) -> str | None:
    # A token is written as its text or as an AddedToken dict; flags such as add_bos_token are neither.
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _from_decoder(decoder: Any, file: Path) -> dict[int, AddedToken]:
    added = {}
    for number, entry in decoder.items() if isinstance(decoder, dict) else [("", decoder)]:
        match entry:
            case {"content": str(content)} if content and number.isascii() and number.isdigit() and len(number) < 10:
                special = entry.get("special") is True
                flags = {name: entry.get(name) is True for name in ("lstrip", "rstrip", "single_word")}
                normalized = entry.get("normalized", not special) is True
                added[int(number)] = AddedToken(content, special=special, normalized=normalized, **flags)
            case _:
                malformed = f"{number!r}: {entry!r:.60}"
                raise CheckpointError(f"{file}: added_tokens_decoder has a malformed entry {malformed}")
    return added


def _from_ids(ids: Mapping[str, Any], special: set[str], file: Path) -> dict[int, AddedToken]:
    added = {}
    for content, token in ids.items():
        if type(token) is not int or not 0 <= token <= LARGEST_TOKEN_ID or not content:
            raise CheckpointError(f"{file}: {content!r:.60} has the id {token!r:.60}, which is none")
        added[token] = AddedToken(content, special=content in special, normalized=content not in special)
    return added
