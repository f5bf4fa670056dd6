"""Mistral's `tekken.json`: byte-level BPE by ranks, like tiktoken's, which says how text is split and what is special.

The first ids are the special tokens', then come the ranks. Reference: mistral-common, `tokens/tokenizers/tekken.py`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.errors import CheckpointError
from quantkit.formats.json_files import parse_object
from quantkit.formats.vocabularies.rebuilt import Rebuilt, begin_with, bpe_of_ranks

_FIRST_SPECIAL = """
    <unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CALLS] [IMG]
    <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]
"""
"""Special tokens of files that do not list any, those of 2024."""

_NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
MOST_SPECIAL = 100_000


def rebuilt(content: bytes, file: Path, config: Mapping[str, Any]) -> Rebuilt:
    """Rebuild a `tekken.json`; raises `CheckpointError` when it is damaged. Nothing in `config` matters to it."""
    found = parse_object(content, file)
    try:
        settings = found["config"]
        pattern = str(settings["pattern"])
        special = _special(found.get("special_tokens"), settings.get("default_num_special_tokens"))
        kept = settings.get("default_vocab_size")
        entries = found["vocab"] if kept is None else found["vocab"][: max(0, kept - len(special))]
        if not all(type(entry["rank"]) is int for entry in entries):
            raise ValueError("a rank is no whole number")
        ranks = {base64.b64decode(entry["token_bytes"], validate=True): entry["rank"] for entry in entries}
    except (LookupError, TypeError, ValueError) as cause:
        raise CheckpointError(f"{file}: is no tekken.json: {cause!r:.100}") from cause
    tokenizer = bpe_of_ranks(ranks, (pattern,), file, special)
    named = {name: text for name, text in _NAMED.items() if text in special}
    if "bos_token" in named:
        begin_with(tokenizer, named["bos_token"])
    return Rebuilt(tokenizer, named)


def _special(entries: Any, count: Any) -> list[str]:
    """Return the special tokens by id; a file may have more than it names."""
    if entries is None:
        entries = [{"rank": number, "token_str": text} for number, text in enumerate(_FIRST_SPECIAL.split())]
    texts = {entry["rank"]: str(entry["token_str"]) for entry in entries}
    if sorted(texts) != list(range(len(entries))):
        raise ValueError("the ranks of special tokens are not 0, 1, 2, ...")
    count = len(texts) if count is None else count
    if not len(texts) <= count <= MOST_SPECIAL:
        raise ValueError(f"there are {count} special tokens, of which {len(texts)} are named")
    return [texts.get(number, f"<SPECIAL_{number}>") for number in range(count)]
