"""What rebuilding a vocabulary gives, and how vocabularies of bytes with ranks become BPE, which most of them need."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from quantkit.errors import CheckpointError

MOST_TOKENS = 1_000_000
LONGEST_TOKEN = 1000
"""Of a vocabulary; and bytes or characters of a token, all of whose parts are looked at. Published ones have 260,000,
and 200."""


class Rebuilt(NamedTuple):
    """A tokenizer of the `tokenizers` library, and what the file says beyond it.

    Attributes
    ----------
    tokenizer : Tokenizer
    named : Mapping of str to str
        `bos_token`, `eos_token` and others -> the token's text.
    """

    tokenizer: Tokenizer
    named: Mapping[str, str]


def bpe_of_ranks(
    ranks: Mapping[bytes, int], patterns: Sequence[str], file: Path, special: Sequence[str] = ()
) -> Tokenizer:
    """Return byte-level BPE in which the two neighbours whose union has the lowest rank are joined first, as tiktoken.

    Parameters
    ----------
    ranks : Mapping of bytes to int
        Token -> rank, from 0 without gaps.
    patterns : sequence of str
        How text is split before; each in turn splits what the one before left.
    file : Path
        Named in errors.
    special : sequence of str
        Tokens that have the first ids, before rank 0.
    """
    check_sizes(ranks, file)
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise CheckpointError(f"{file}: the ranks of its tokens are not 0, 1, 2, ...")
    spelled = {token: "".join(map(_LETTERS.__getitem__, token)) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = ((token[:at], token[at:]) for at in range(1, len(token)))
        found = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        merges += sorted(found, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    vocabulary = {text: token for token, text in enumerate(special)}
    vocabulary |= {spelled[token]: len(special) + rank for token, rank in ranks.items()}
    if len(vocabulary) != len(special) + len(ranks):
        raise CheckpointError(f"{file}: a special token is named twice, or as another token")
    pairs_spelled = [(spelled[left], spelled[right]) for left, right in merges]
    try:
        tokenizer = Tokenizer(models.BPE(vocabulary, pairs_spelled, ignore_merges=True))
        tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
        split_bytes(tokenizer, patterns)
    except Exception as cause:  # the library's errors have no class of their own
        raise CheckpointError(f"{file}: makes no tokenizer: {in_one_line(cause)}") from cause
    return tokenizer


def check_sizes(tokens: Collection[str | bytes], file: Path) -> None:
    """Raise `CheckpointError` when no honest vocabulary has so many tokens, or one so long."""
    if len(tokens) > MOST_TOKENS:
        raise CheckpointError(f"{file}: has {len(tokens)} tokens; it is damaged or hostile")
    if (longest := max(map(len, tokens), default=0)) > LONGEST_TOKEN:
        raise CheckpointError(f"{file}: has a token of {longest} characters; it is damaged or hostile")


def in_one_line(cause: Exception) -> str:
    """Return what an error of the library says, which may take several lines."""
    return " ".join(str(cause).split())


def split_bytes(tokenizer: Tokenizer, patterns: Sequence[str]) -> None:
    """Let a tokenizer split text by patterns into words of bytes, and read them back."""
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()


def begin_with(tokenizer: Tokenizer, token: str) -> None:
    """Put a token before every text."""
    special = [{"id": "bos", "ids": [tokenizer.token_to_id(token)], "tokens": [token]}]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["bos", "$A"], pair=["bos", "$A", "bos:1", "$B:1"], special_tokens=special
    )


def byte_letters() -> dict[int, str]:
    """Return GPT-2's spelling of bytes: printable Latin-1 stands for itself, the others are letters from 256 up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


_LETTERS = byte_letters()
