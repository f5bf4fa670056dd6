"""SentencePiece's `tokenizer.model`, BPE or unigram, read without the library: pieces, and how text is normalized.

Fields are those of `sentencepiece_model.proto`. Plain text gets the ids that SentencePiece gives it. Control pieces
such as `<s>` are special tokens, which SentencePiece never finds in a text and transformers does. Every part of a text
between them gets the space that SentencePiece puts before a text; `legacy: false` in `tokenizer_config.json` says that
only the beginning gets it, and `add_prefix_space: false` that nothing does.

Kudo and Richardson, "SentencePiece", 2018.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.formats.vocabularies.merges import merges_of_scores
from quantkit.formats.vocabularies.protobuf import fields, signed
from quantkit.formats.vocabularies.rebuilt import MOST_TOKENS, Rebuilt, begin_with, check_sizes, in_one_line

UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
SPACE = "▁"

_NAMED = {"unk_token": 40, "bos_token": 41, "eos_token": 42, "pad_token": 43}
"""Special token -> the field of the trainer that has its id."""
_DEFAULT_IDS = {40: 0, 41: 1, 42: 2, 43: -1}


@dataclass
class _Model:
    """A file as it reads."""

    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    trainer: dict[int, int] = field(default_factory=dict)
    normalizer: dict[int, int] = field(default_factory=dict)
    charsmap: bytes = b""

    @classmethod
    def read(cls, content: bytes) -> _Model:
        model = cls()
        for number, value in fields(content):
            if number in (1, 2, 3) and not isinstance(value, bytes):
                raise ValueError(f"field {number} is no message")
            match number, value:
                case 1, bytes():
                    model._add_piece(value)
                case 2, bytes():
                    model.trainer |= {name: signed(one) for name, one in fields(value) if isinstance(one, int)}
                case 3, bytes():
                    for name, one in fields(value):
                        if isinstance(one, int):
                            model.normalizer[name] = one
                        elif name == 2:
                            model.charsmap = one
        return model

    def _add_piece(self, message: bytes) -> None:
        if len(self.pieces) == MOST_TOKENS:
            raise ValueError(f"it has more than {MOST_TOKENS} pieces")
        found: dict[int, int | bytes] = dict(fields(message))
        text, score, kind = found.get(1, b""), found.get(2, bytes(4)), found.get(3, NORMAL)
        if not (isinstance(text, bytes) and isinstance(score, bytes) and isinstance(kind, int) and len(score) == 4):
            raise ValueError("a piece has fields of other kinds")
        self.pieces.append(text.decode())
        self.scores.append(struct.unpack("<f", score)[0])
        self.kinds.append(kind)

    @property
    def kind(self) -> int:
        return self.trainer.get(3, UNIGRAM)

    @property
    def dummy_prefix(self) -> bool:
        return self.normalizer.get(3, 1) != 0

    def texts(self, *kinds: int) -> list[str]:
        """Return the pieces of some kinds, by id."""
        return [text for text, kind in zip(self.pieces, self.kinds, strict=True) if kind in kinds]

    @property
    def named(self) -> dict[str, str]:
        ids = {name: self.trainer.get(number, _DEFAULT_IDS[number]) for name, number in _NAMED.items()}
        return {name: self.pieces[token] for name, token in ids.items() if 0 <= token < len(self.pieces)}


def rebuilt(content: bytes, file: Path, config: Mapping[str, Any]) -> Rebuilt:
    """Rebuild a `tokenizer.model`.

    Raises
    ------
    CheckpointError
        When the file is damaged.
    UnsupportedError
        When its model is of words or characters, or its spaces are no part of pieces or stand behind words.
    """
    try:
        model = _Model.read(content)
    except ValueError as cause:
        raise CheckpointError(f"{file}: is no SentencePiece model ({cause}); download it again") from cause
    if not model.pieces or len(set(model.pieces)) != len(model.pieces):
        raise CheckpointError(f"{file}: is no SentencePiece model: it has no pieces, or one of them twice")
    check_sizes(model.pieces, file)
    if model.trainer.get(24, 0) or not model.normalizer.get(5, 1):
        raise UnsupportedError(f"{file}: its pieces do not begin with their spaces; quantkit reads those that do")
    if model.kind not in (UNIGRAM, BPE):
        raise UnsupportedError(f"{file}: its pieces are words or characters; quantkit reads BPE and unigram models")
    prefix = model.dummy_prefix and config.get("add_prefix_space") is not False
    try:
        tokenizer = Tokenizer(_model(model))
        _set_spaces(tokenizer, model, prefix=prefix, everywhere=config.get("legacy") is not False)
    except Exception as cause:  # the library's errors have no class of their own
        raise CheckpointError(f"{file}: its pieces make no tokenizer: {in_one_line(cause)}") from cause
    special = model.texts(CONTROL, UNKNOWN)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    if bos := model.named.get("bos_token"):
        begin_with(tokenizer, bos)
    return Rebuilt(tokenizer, model.named)


def _model(model: _Model) -> models.Model:
    bytes_too = model.trainer.get(35, 0) != 0
    unknown = next((number for number, kind in enumerate(model.kinds) if kind == UNKNOWN), None)
    if model.kind == UNIGRAM:
        scored = list(zip(model.pieces, model.scores, strict=True))
        return models.Unigram(scored, unk_id=unknown, byte_fallback=bytes_too)
    scores = [score for score, kind in zip(model.scores, model.kinds, strict=True) if kind == NORMAL]
    return models.BPE(
        {text: number for number, text in enumerate(model.pieces)},
        merges_of_scores(model.texts(NORMAL), scores),
        unk_token=None if unknown is None else model.pieces[unknown],
        fuse_unk=True,
        byte_fallback=bytes_too,
        ignore_merges=USER_DEFINED in model.kinds,  # which are taken whole, and made of no others
    )


def _set_spaces(tokenizer: Tokenizer, model: _Model, *, prefix: bool, everywhere: bool) -> None:
    """Set how text is normalized and read back; `prefix`: a space comes before it, `everywhere`: also before each part
    of it that stands between special tokens."""
    steps: list[normalizers.Normalizer] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.normalizer.get(4, 1):
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps += [normalizers.Prepend(SPACE)] if prefix and everywhere else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    first = [pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)] if prefix and not everywhere else []
    if splits := [*first, *_splits(model)]:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    read = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*read, decoders.Strip(" ", 1, 0)] if prefix else read)


def _splits(model: _Model) -> list[pre_tokenizers.PreTokenizer]:
    """Return where a text is split before its parts are made of pieces.

    Pieces that users defined stand alone. And where pieces are taken whole, as those are, control pieces and bytes must
    not be when a text spells them out: it is split behind their first letter.
    """
    defined = sorted(model.texts(USER_DEFINED), key=len, reverse=True)
    if not defined and model.kind == BPE:
        return []
    hidden = [text for text in model.texts(UNKNOWN, CONTROL, BYTE) if len(text) > 1]
    alone = "|".join(map(re.escape, defined))
    behind = "|".join(f"{re.escape(text[0])}(?={re.escape(text[1:])})" for text in hidden)
    splits = ((alone, "isolated"), (behind, "merged_with_previous"))
    return [pre_tokenizers.Split(Regex(pattern), how) for pattern, how in splits if pattern]
