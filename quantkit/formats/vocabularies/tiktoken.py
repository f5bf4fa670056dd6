"""tiktoken's files: lines of a token in base64 and its rank. Llama 3 and 4, Qwen 1 and Kimi are published so.

A file says neither how text is split nor which special tokens follow its ranks. `ENCODINGS` says it for the published
ones, known by how many tokens they have. Others are split as Llama 3 does, which is what transformers does, or as Qwen,
where the file is named so; their special tokens are those that `tokenizer_config.json` lists.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from tokenizers import AddedToken, normalizers

from quantkit.errors import CheckpointError, notice
from quantkit.formats.vocabularies.pre_tokenizers import PRE_TOKENIZERS
from quantkit.formats.vocabularies.rebuilt import MOST_TOKENS, Rebuilt, begin_with, bpe_of_ranks

_log = logging.getLogger(__name__)


class Encoding(NamedTuple):
    """What a file does not say.

    Attributes
    ----------
    patterns : tuple of str
        How text is split.
    special : tuple of str
        Special tokens, by id behind the ranks.
    begin, end : str
        The tokens that begin and end a text; none begins it where the model's own tokenizer puts none.
    composed : bool
        Text is brought to Unicode's form NFC first.
    """

    patterns: tuple[str, ...]
    special: tuple[str, ...] = ()
    begin: str = ""
    end: str = ""
    composed: bool = False


def _numbered(name: str, begin: int, end: int) -> list[str]:
    return [f"<|{name}_{number}|>" for number in range(begin, end)]


def _names(text: str) -> list[str]:
    return [f"<|{name}|>" for name in text.split()]


def _llama3() -> tuple[str, ...]:
    names = _names("begin_of_text end_of_text reserved_special_token_0 reserved_special_token_1 finetune_right_pad_id")
    names += _names("step_id start_header_id end_header_id eom_id eot_id python_tag image")
    return (*names, *_numbered("reserved_special_token", 2, 246))


def _llama4() -> tuple[str, ...]:
    names = _names("begin_of_text end_of_text fim_prefix fim_middle fim_suffix header_start header_end eom eot step")
    names += [*_numbered("text_post_train_reserved_special_token", 0, 6), *_names("python_start python_end")]
    names += [*_names("finetune_right_pad"), *_numbered("text_post_train_reserved_special_token", 8, 69)]
    names += [*_names("image_start image_end"), *_numbered("vision_reserved_special_token", 0, 2)]
    names += [*_names("tile_x_separator tile_y_separator"), *_numbered("vision_reserved_special_token", 2, 6)]
    names += [*_names("image"), *_numbered("vision_reserved_special_token", 6, 7), *_names("patch")]
    names += [*_numbered("vision_reserved_special_token", 7, 1048)]
    names += [*_numbered("reasoning_reserved_special_token", 0, 8)]
    names += _names("reasoning_thinking_start reasoning_thinking_end")
    return (*names, *_numbered("reserved_special_token", 0, 2048 - len(names)))


_QWEN_SPECIAL = (*_names("endoftext im_start im_end"), *_numbered("extra", 0, 205))
_LLAMA3, _LLAMA4, _QWEN = (PRE_TOKENIZERS[name].patterns for name in ("llama3", "gpt-4o", "qwen2"))
_NOT_HAN = r"&&[^\p{Han}]]"
_KIMI = r"\p{Han}+|" + _LLAMA4[0].replace(r"\p{M}]", rf"\p{{M}}{_NOT_HAN}").replace("[\\r\\n/]*", "[\\r\\n]*")

ENCODINGS: Mapping[int, Encoding] = MappingProxyType(
    {
        128_000: Encoding(_LLAMA3, _llama3(), "<|begin_of_text|>", "<|end_of_text|>"),
        200_000: Encoding(_LLAMA4, _llama4(), "<|begin_of_text|>", "<|end_of_text|>"),
        151_643: Encoding(_QWEN, _QWEN_SPECIAL, end="<|endoftext|>", composed=True),
        163_584: Encoding((_KIMI,), end="[EOS]"),
    }
)
"""Number of ranks -> what is known of the published file."""


def looks_like_ranks(content: bytes) -> bool:
    """Whether a file begins as tiktoken's do."""
    token, _, rank = content[:1000].partition(b"\n")[0].strip().partition(b" ")
    return bool(token) and rank.isdigit()


def rebuilt(content: bytes, file: Path, config: Mapping[str, Any]) -> Rebuilt:
    """Rebuild a file of ranks; raises `CheckpointError` when it is damaged."""
    ranks = _ranks(content, file)
    encoding = ENCODINGS.get(len(ranks))
    if encoding is None:
        encoding = Encoding(_QWEN, composed=True) if "qwen" in file.name.lower() else Encoding(_LLAMA3)
        notice(_log, f"{file}: is no published file; its text is split as by default")
    tokenizer = bpe_of_ranks(ranks, encoding.patterns, file)
    if encoding.composed:
        tokenizer.normalizer = normalizers.NFC()
    if config.get("added_tokens_decoder"):  # which says what is special, and with which id
        return Rebuilt(tokenizer, {})
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in encoding.special])
    named = {"bos_token": encoding.begin, "eos_token": encoding.end}
    named = {name: text for name, text in named.items() if tokenizer.token_to_id(text) is not None}
    if "bos_token" in named:
        begin_with(tokenizer, named["bos_token"])
    return Rebuilt(tokenizer, named)


def _ranks(content: bytes, file: Path) -> dict[bytes, int]:
    if content.count(b"\n") > MOST_TOKENS:
        raise CheckpointError(f"{file}: has more than {MOST_TOKENS} lines; it is damaged or hostile")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as cause:
            raise CheckpointError(f"{file}: line {number} is no token in base64 and its rank") from cause
    return ranks
