"""`vocab.json` and `merges.txt`: byte-level BPE as GPT-2 was published, and Qwen2 after it.

The files do not say how text is split. The name of the tokenizer in `tokenizer_config.json` does, or the model's type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.formats.json_files import parse_object
from quantkit.formats.vocabularies.pre_tokenizers import PRE_TOKENIZERS
from quantkit.formats.vocabularies.rebuilt import Rebuilt, in_one_line, split_bytes

END = "<|endoftext|>"
_QWEN = re.compile(r"qwen[23]", re.IGNORECASE)


def rebuilt(vocab: bytes, merges: bytes, file: Path, config: Mapping[str, Any], model_type: str) -> Rebuilt:
    """Rebuild a `vocab.json` with its `merges.txt`.

    Parameters
    ----------
    vocab, merges : bytes
        What the files hold.
    file : Path
        `vocab.json`, which errors name.
    config : Mapping
        `tokenizer_config.json`.
    model_type : str
        Of the model, where the config does not name its tokenizer.

    Raises
    ------
    CheckpointError
        When a file is damaged, or they do not fit each other.
    UnsupportedError
        When its words end with a mark, as those of CLIP and the first GPT do.
    """
    vocabulary = parse_object(vocab, file)
    if not all(type(token) is int for token in vocabulary.values()):
        raise CheckpointError(f"{file}: has a token whose id is no whole number")
    pairs = _pairs(merges, file.with_name("merges.txt"))
    if any(right.endswith("</w>") for _, right in pairs):
        raise UnsupportedError(f"{file}: marks the ends of words; of vocab.json and merges.txt, byte-level BPE is read")
    try:
        tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
    except Exception as cause:  # the library's errors have no class of their own
        raise CheckpointError(f"{file}: does not fit merges.txt: {in_one_line(cause)}") from cause
    of_qwen = _QWEN.search(str(config.get("tokenizer_class") or model_type)) is not None
    if of_qwen:
        tokenizer.normalizer = normalizers.NFC()
        split_bytes(tokenizer, PRE_TOKENIZERS["qwen2"].patterns)
    else:
        prefixed = config.get("add_prefix_space") is True
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefixed, use_regex=True)
        tokenizer.decoder = decoders.ByteLevel()
    names = ("eos_token", "pad_token") if of_qwen else ("bos_token", "eos_token")
    return Rebuilt(tokenizer, dict.fromkeys(names, END) if END in vocabulary else {})


def _pairs(merges: bytes, file: Path) -> list[tuple[str, str]]:
    try:
        lines = merges.decode().split("\n")
    except UnicodeDecodeError as cause:
        raise CheckpointError(f"{file}: is not UTF-8 text: {cause}") from cause
    found = []
    for number, line in enumerate(lines, start=1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise CheckpointError(f"{file}: line {number} is no pair of tokens")
        found.append((left, right))
    return found
