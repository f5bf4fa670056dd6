"""The tokenizer of a GGUF file, rebuilt as the files that a Hugging Face folder would hold.

Three kinds are read (`KINDS`): byte-level BPE, whose pre-tokenizer the file names, BPE in SentencePiece's spelling, and
SentencePiece's scores. What vocabularies in other files need too is in `formats/vocabularies`. WordPiece and unigram
tokenizers belong to encoders and are refused.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from quantkit.errors import UnsupportedError, notice
from quantkit.formats.gguf.file import GGUFFile
from quantkit.formats.vocabularies.end_tokens import end_tokens
from quantkit.formats.vocabularies.merges import merges_of_scores
from quantkit.formats.vocabularies.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer

logger = logging.getLogger(__name__)


class Kind(NamedTuple):
    """What `tokenizer.ggml.model` says of a tokenizer.

    Attributes
    ----------
    byte_level : bool
        Whether tokens are spelled in GPT-2's alphabet of bytes; else a space is `▁`, and bytes are tokens such as
        `<0x0A>`, as in SentencePiece.
    scored : bool
        Whether scores say what is merged first; else a list of merges does.
    begins, always : bool
        Whether BOS comes first where the file does not say; and also where it denies it.
    ids : Mapping
        Special tokens where the file does not name them.
    """

    byte_level: bool = False
    scored: bool = False
    begins: bool = False
    always: bool = False
    ids: Mapping[str, int] = MappingProxyType({})


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "gpt2": Kind(byte_level=True),
        "llama": Kind(scored=True, begins=True, ids=MappingProxyType({"bos": 1, "eos": 2, "unknown": 0})),
        "gemma4": Kind(begins=True, always=True),  # files of its first weeks deny it
    }
)

LINES = r"[^\n]+|[\n]+"
"""Where BPE in SentencePiece's spelling splits: merges do not cross the end of a line."""

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
"""Values of `tokenizer.ggml.token_type` for tokens that are found in text before it is split."""

END_KEYS = ("eos", "eot", "eom")
"""Metadata that declare a token which ends a text or a turn."""

STRIPPING = ("phi-3", "phi3")
"""Models, by `general.name`, whose special tokens take the white space behind them, as their tokenizer.json says."""
NOT_STRIPPING = ("<unk>", "<s>", "<|endoftext|>")


def check_tokenizer(file: GGUFFile) -> None:
    """Raise `UnsupportedError` when the file's tokenizer is of a kind that cannot be rebuilt."""
    model = file.value("tokenizer.ggml.model", str)
    if model not in KINDS:
        raise UnsupportedError(
            f"{file.path}: its tokenizer is of kind {model!r}; read from GGUF files are {', '.join(KINDS)} (BPE and "
            "SentencePiece's): use the model's Hugging Face folder"
        )
    name = file.value("tokenizer.ggml.pre", str, "default")
    if KINDS[model].byte_level and name not in PRE_TOKENIZERS:
        raise UnsupportedError(
            f"{file.path}: its pre-tokenizer is {name!r}; known are {', '.join(sorted(PRE_TOKENIZERS))}: "
            "use the model's Hugging Face folder"
        )


def tokenizer_files(file: GGUFFile) -> dict[str, bytes]:
    """Return tokenizer.json, tokenizer_config.json, generation_config.json and, when there is one, the chat template.

    Raises
    ------
    CheckpointError
        When the token lists contradict one another.
    UnsupportedError
        As `check_tokenizer`.
    """
    check_tokenizer(file)
    tokens = _Tokens(file)
    files = {
        "tokenizer.json": tokens.tokenizer().to_str().encode(),
        "tokenizer_config.json": _json(tokens.config()),
        "generation_config.json": _json(tokens.generation_config()),
    }
    template = file.value("tokenizer.chat_template", str, "")
    return files | ({"chat_template.jinja": template.encode()} if template else {})


class _Tokens:
    """The token list of a file, checked, and what is built of it."""

    def __init__(self, file: GGUFFile) -> None:
        self._file, self._kind = file, KINDS[file.value("tokenizer.ggml.model", str)]
        self._texts = [text or f"[EMPTY_{number}]" for number, text in enumerate(self._list("tokens"))]
        self._types: list[float] = self._numbers("token_type", np.ones(len(self._texts))).tolist()
        self._vocabulary = {text: number for number, text in enumerate(self._texts)}
        if len(self._types) != len(self._texts):
            raise file.mapped.fault(f"has {len(self._texts)} tokens but {len(self._types)} token types")
        if len(self._vocabulary) != len(self._texts):
            raise file.mapped.fault("its token list names a token twice")
        self._ends = end_tokens(self._vocabulary.get, lambda token: self._types[token] == CONTROL)
        for token in self._ends.values():
            self._types[token] = CONTROL

    def tokenizer(self) -> Tokenizer:
        """Build the tokenizer with the library itself, so it is known to load."""
        tokenizer = self._byte_level() if self._kind.byte_level else self._in_pieces()
        stripping = any(name in self._file.value("general.name", str, "").lower() for name in STRIPPING)
        tokenizer.add_tokens(
            [
                AddedToken(
                    text,
                    special=kind != USER_DEFINED,
                    normalized=False,
                    rstrip=stripping and text not in NOT_STRIPPING,
                )
                for text, kind in zip(self._texts, self._types, strict=True)
                if kind in (UNKNOWN, CONTROL, USER_DEFINED)
            ]
        )
        added = {what: self._added(what) for what in ("bos", "eos")}
        special = [{"id": what, "ids": [n], "tokens": [self._texts[n]]} for what, n in added.items() if n is not None]
        if special:
            # By names of our own: in a template, a colon in a token's text would mean something.
            first, last = ([what] if added[what] is not None else [] for what in added)
            single = [*first, "$A", *last]
            pair = [*first, "$A", *last, *(f"{what}:1" for what in first), "$B:1", *(f"{what}:1" for what in last)]
            tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
        return tokenizer

    def config(self) -> dict[str, object]:
        """What tokenizer_config.json says: the special tokens by name."""
        names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
        ids = {short: self._id(long) for long, short in names.items()}
        special = {f"{short}_token": self._texts[number] for short, number in ids.items() if number is not None}
        return {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **special}

    def generation_config(self) -> dict[str, object]:
        """What generation_config.json says: where generation begins and every token that ends it."""
        declared = [self._id(key) for key in END_KEYS]
        ends = {number for number in declared if number is not None} | set(self._ends.values())
        begin = self._id("bos")
        return {"eos_token_id": sorted(ends)} | ({} if begin is None else {"bos_token_id": begin})

    def _byte_level(self) -> Tokenizer:
        """BPE whose tokens are spelled in GPT-2's alphabet."""
        if "tokenizer.ggml.pre" not in self._file.metadata:
            notice(logger, f"{self._file.path}: names no pre-tokenizer; text is split as by default")
        tokenizer = self._bpe(self._merges(), ignore_merges=self._pre.whole_words)
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self._pre.patterns]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    def _in_pieces(self) -> Tokenizer:
        """BPE in SentencePiece's spelling, by scores or by merges."""
        scored = self._kind.scored
        merges = merges_of_scores(self._texts, self._scores()) if scored else self._merges()
        unknown = self._id("unknown")
        unknown_text = None if unknown is None else self._texts[unknown]
        tokenizer = self._bpe(merges, byte_fallback=True, unk_token=unknown_text, fuse_unk=True)
        prefixed = scored and self._file.value("tokenizer.ggml.add_space_prefix", bool, True)
        spaces = normalizers.Replace(" ", "▁")
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefixed else spaces
        if not scored:
            tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(LINES), "isolated")
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)
        return tokenizer

    def _bpe(self, merges: list[tuple[str, str]], **options: Any) -> Tokenizer:
        try:
            return Tokenizer(models.BPE(self._vocabulary, merges, **options))
        except Exception as cause:  # the library's errors have no class of their own
            raise self._file.mapped.fault(f"its merges do not fit its tokens: {cause}") from cause

    @property
    def _pre(self) -> PreTokenizer:
        return PRE_TOKENIZERS[self._file.value("tokenizer.ggml.pre", str, "default")]

    def _merges(self) -> list[tuple[str, str]]:
        """The file's merges; what stands before the space may begin with one."""
        pairs = ((merge, merge.find(" ", 1)) for merge in self._list("merges"))
        return [(merge[:at], merge[at + 1 :]) if at > 0 else (merge, "") for merge, at in pairs]

    def _scores(self) -> list[float]:
        scores = self._numbers("scores", None)
        if len(scores) != len(self._texts):
            raise self._file.mapped.fault(f"has {len(self._texts)} tokens but {len(scores)} scores")
        found: list[float] = scores.tolist()
        return found

    def _added(self, what: str) -> int | None:
        """The token that is put before (`bos`) or behind (`eos`) a text, if any."""
        default = what == "bos" and (self._pre.begins if self._kind.byte_level else self._kind.begins)
        said = self._file.value(f"tokenizer.ggml.add_{what}_token", bool, default)
        return self._id(what) if said or (default and self._kind.always) else None

    def _id(self, what: str) -> int | None:
        key = f"{what}_token_id"
        if f"tokenizer.ggml.{key}" not in self._file.metadata:
            number = self._kind.ids.get(what, -1)
            return number if 0 <= number < len(self._texts) else None
        number = self._file.value(f"tokenizer.ggml.{key}", int)
        if not 0 <= number < len(self._texts):
            raise self._file.mapped.fault(f"its {key} {number} is not one of its {len(self._texts)} tokens")
        return number

    def _list(self, key: str) -> list[str]:
        value = self._file.metadata.get(f"tokenizer.ggml.{key}")
        if not isinstance(value, list):
            raise self._file.mapped.fault(f"its metadata has no list tokenizer.ggml.{key}")
        return value

    def _numbers(self, key: str, default: Any) -> Any:
        value = self._file.metadata.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, np.ndarray):
            raise self._file.mapped.fault(f"its metadata tokenizer.ggml.{key} is not an array of numbers")
        return value


def _json(content: dict[str, object]) -> bytes:
    return json.dumps(content, indent=2, ensure_ascii=False).encode()
