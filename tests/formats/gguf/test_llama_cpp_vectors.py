"""Tokenizers of GGUF files give llama.cpp's ids: its own vectors, and nasty strings that it was asked about.

The folder that QUANTKIT_TEST_LLAMA_CPP names is `vendor/llama.cpp` of llama-cpp-python's source distribution, which
`.ci/run` fetches.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import quantkit
from golden import llama_cpp_ids
from quantkit.errors import UnsupportedError
from quantkit.generation.text.tokenizer import Tokenizer

pytestmark = pytest.mark.live

SEPARATOR = "\n__ggml_vocab_test__\n"
WITH_VECTORS = (
    *("command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe", "llama-spm", "mpt"),
    *("phi-3", "qwen2", "qwen35", "refact", "starcoder"),
)
OTHERS = ("aquila", "baichuan", "gpt-neox")


def vocabulary(name: str) -> Path:
    return Path(os.environ["QUANTKIT_TEST_LLAMA_CPP"], "models", f"ggml-vocab-{name}.gguf")


@pytest.fixture(scope="module", params=[*WITH_VECTORS, *OTHERS])
def named(request: pytest.FixtureRequest) -> tuple[str, Tokenizer]:
    return request.param, quantkit.load_tokenizer(vocabulary(request.param))


def test_ids_of_the_vectors(named: tuple[str, Tokenizer]) -> None:
    name, tokenizer = named
    path = vocabulary(name)
    if name in OTHERS:
        assert not path.with_suffix(".gguf.inp").exists()
        return
    texts = path.with_suffix(".gguf.inp").read_bytes().decode().split(SEPARATOR)
    expected = [[int(token) for token in line.split()] for line in path.with_suffix(".gguf.out").open()]
    assert 40 < len(expected) <= len(texts) <= len(expected) + 1  # a separator may stand behind the last text
    for text, ids in zip(texts, expected, strict=False):
        assert tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) == ids, text


def test_ids_of_nasty_strings(named: tuple[str, Tokenizer]) -> None:
    name, tokenizer = named
    expected = json.loads(llama_cpp_ids.FILE.read_text())[name]
    for split, digest in zip((False, True), expected, strict=True):
        ids = [
            tokenizer.encode(text, add_special_tokens=False, split_special_tokens=split) for text in llama_cpp_ids.TEXTS
        ]
        assert llama_cpp_ids.digest(ids) == digest


@pytest.mark.parametrize(("name", "kind"), [("bert-bge", "bert"), ("nomic-bert-moe", "t5")])
def test_tokenizers_of_encoders_are_refused(name: str, kind: str) -> None:
    with pytest.raises(UnsupportedError, match=f"its tokenizer is of kind '{kind}'"):
        quantkit.load_tokenizer(vocabulary(name))
