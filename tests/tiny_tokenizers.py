"""Files of tiny tokenizers of the two usual kinds, as `Tokenizer` takes them."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

import tiny


def byte_level() -> dict[str, bytes]:
    """Return the files of tests/tiny.py's byte-level tokenizer."""
    with TemporaryDirectory() as folder:
        tiny.write_tokenizer(Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def byte_fallback() -> dict[str, bytes]:
    """Return the files of a tokenizer as sentencepiece models become: Llama 2, Mistral, TinyLlama."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcé", "▁a", "bc", "▁abc"]
    merges = [("▁", "a"), ("b", "c"), ("▁a", "bc")]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(piece, special=True) for piece in pieces[:3]])
    return {"tokenizer.json": backend.to_str().encode()}


BYTE_LEVEL, BYTE_FALLBACK = byte_level(), byte_fallback()


def edited(files: dict[str, bytes] = BYTE_LEVEL, **contents: Any) -> dict[str, bytes]:
    """Return the files with other JSON files (`config={...}`: config.json; None leaves a file out)."""
    changed = {name: None if content is None else json.dumps(content).encode() for name, content in contents.items()}
    merged = files | {f"{name}.json": content for name, content in changed.items()}
    return {name: content for name, content in merged.items() if content is not None}


def rebuilt(files: dict[str, bytes] = BYTE_LEVEL, **parts: Any) -> dict[str, bytes]:
    """Return the files with other sections of tokenizer.json: `normalizer={...}`, `added_tokens=[...]`."""
    return files | {"tokenizer.json": json.dumps(json.loads(files["tokenizer.json"]) | parts).encode()}
