"""The tokenizer of a GGUF file, rebuilt as the files that a Hugging Face folder would hold.

Byte-level BPE only (`tokenizer.ggml.model` = `gpt2`). A GGUF file names its pre-tokenizer (`tokenizer.ggml.pre`) but
does not spell it out: `PRE_TOKENIZERS` says what llama.cpp does for each name, in the spelling of the models' published
tokenizer.json. Names that are not in the table are refused, because a wrong split is a wrong answer without an error.
"""

from __future__ import annotations

import json
import logging
from typing import NamedTuple

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from quantkit.errors import UnsupportedError
from quantkit.formats.end_tokens import end_tokens
from quantkit.formats.gguf.file import GGUFFile

logger = logging.getLogger(__name__)

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 = rf"{_WORD}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACE}"
_QWEN2 = rf"{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACE}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?(?:{_UPPER}*{_LOWER}+|{_UPPER}+{_LOWER}*)"
_TEKKEN = rf"{_CASED}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACE}"


class PreTokenizer(NamedTuple):
    """How text is split before BPE: every pattern in turn splits the pieces that the one before left.

    `whole_words`: a piece that is a token is taken as it is, without merging (`ignore_merges`).
    `begins`: whether BOS comes first when the file does not say (`tokenizer.ggml.add_bos_token`).
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    begins: bool = False


_DIGIT_WISE = PreTokenizer((r"\p{N}", _GPT2))
_LLAMA3_BEGINS = PreTokenizer((_LLAMA3,), whole_words=True, begins=True)

PRE_TOKENIZERS = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": PreTokenizer((_GPT2,)),
    "olmo": PreTokenizer((_GPT2,)),
    "mpt": PreTokenizer((_GPT2,)),
    "smollm": _DIGIT_WISE,
    "starcoder": _DIGIT_WISE,
    "refact": _DIGIT_WISE,
    "command-r": _DIGIT_WISE,
    "minerva-7b": _DIGIT_WISE,
    "llama-bpe": _LLAMA3_BEGINS,
    "llama3": _LLAMA3_BEGINS,
    "llama-v3": _LLAMA3_BEGINS,
    "falcon3": _LLAMA3_BEGINS,
    "smaug-bpe": PreTokenizer((_LLAMA3,)),
    "qwen2": PreTokenizer((_QWEN2,)),
    "deepseek-r1-qwen": PreTokenizer((_QWEN2,)),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
    "tekken": PreTokenizer((_TEKKEN,), whole_words=True, begins=True),
}

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
"""Values of `tokenizer.ggml.token_type` for tokens that are found in text before it is split."""

END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
"""Metadata that declare a token which ends a text or a turn."""


def check_tokenizer(file: GGUFFile) -> None:
    """Raise `UnsupportedError` when the file's tokenizer is of a kind that cannot be rebuilt."""
    model = file.value("tokenizer.ggml.model", str)
    if model != "gpt2":
        raise UnsupportedError(
            f"{file.path}: its tokenizer is of kind {model!r}; only byte-level BPE ('gpt2') is read from GGUF files: "
            "use the model's Hugging Face folder"
        )
    name = file.value("tokenizer.ggml.pre", str, "default")
    if name not in PRE_TOKENIZERS:
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
        self._file = file
        self._texts: list[str] = self._list("tokens")
        types = file.metadata.get("tokenizer.ggml.token_type", np.ones(len(self._texts)))
        if not isinstance(types, np.ndarray):
            raise file.mapped.fault("its metadata tokenizer.ggml.token_type is not an array of numbers")
        self._types: list[float] = types.tolist()
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
        if "tokenizer.ggml.pre" not in self._file.metadata:
            logger.warning("%s: names no pre-tokenizer; text is split as by default", self._file.path)
        pre = PRE_TOKENIZERS[self._file.value("tokenizer.ggml.pre", str, "default")]
        merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in self._list("merges"))]
        try:
            tokenizer = Tokenizer(models.BPE(self._vocabulary, merges, ignore_merges=pre.whole_words))
        except Exception as cause:  # the library's errors have no class of their own
            raise self._file.mapped.fault(f"its merges do not fit its tokens: {cause}") from cause
        tokenizer.add_tokens(
            [
                AddedToken(text, special=kind != USER_DEFINED, normalized=False)
                for text, kind in zip(self._texts, self._types, strict=True)
                if text and kind in (UNKNOWN, CONTROL, USER_DEFINED)
            ]
        )
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
        tokenizer.decoder = decoders.ByteLevel()
        added = {what: self._added(what, default) for what, default in (("bos", pre.begins), ("eos", False))}
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
        ids = {short: self._id(f"{long}_token_id") for long, short in names.items()}
        special = {f"{short}_token": self._texts[number] for short, number in ids.items() if number is not None}
        return {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **special}

    def generation_config(self) -> dict[str, object]:
        """What generation_config.json says: where generation begins and every token that ends it."""
        declared = [self._id(key) for key in END_KEYS]
        ends = {number for number in declared if number is not None} | set(self._ends.values())
        begin = self._id("bos_token_id")
        return {"eos_token_id": sorted(ends)} | ({} if begin is None else {"bos_token_id": begin})

    def _added(self, what: str, default: bool) -> int | None:
        number = self._id(f"{what}_token_id")
        return number if self._file.value(f"tokenizer.ggml.add_{what}_token", bool, default) else None

    def _id(self, key: str) -> int | None:
        if f"tokenizer.ggml.{key}" not in self._file.metadata:
            return None
        number = self._file.value(f"tokenizer.ggml.{key}", int)
        if not 0 <= number < len(self._texts):
            raise self._file.mapped.fault(f"its {key} {number} is not one of its {len(self._texts)} tokens")
        return number

    def _list(self, key: str) -> list[str]:
        value = self._file.metadata.get(f"tokenizer.ggml.{key}")
        if not isinstance(value, list):
            raise self._file.mapped.fault(f"its metadata has no list tokenizer.ggml.{key}")
        return value


def _json(content: dict[str, object]) -> bytes:
    return json.dumps(content, indent=2, ensure_ascii=False).encode()
