"""Vocabularies as they are published give the ids of the libraries that own them, and transformers', on nasty strings.

They come inside packages of PyPI: `mistral-common` (SentencePiece and Tekken), `llama-models` (Llama 3 and 4) and
`dashscope` (Qwen), of which the last two are read without what they depend on.
"""

from __future__ import annotations

import importlib.util
import io
import itertools
import json
import re
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nasty_strings import NASTY
from quantkit import load_tokenizer
from quantkit.generation.text.tokenizer import Tokenizer
from tiny_tokenizers import BYTE_LEVEL

pytestmark = pytest.mark.live

Encode = Callable[[str], list[int]]
ODD = [text for text in NASTY if "</s>" not in text and "<s>" not in text and "<unk>" not in text and "[" not in text]
"""Without what SentencePiece takes for plain text, and others for special tokens."""
CORPUS = [*NASTY, *Path(__file__).read_text().splitlines(), *Path(importlib.util.__file__).read_text().splitlines()]


def published(package: str, pattern: str) -> list[Path]:
    """Return files of an installed package."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    found = sorted(Path(spec.submodule_search_locations[0]).glob(pattern))
    assert found, f"{package} has no {pattern}"
    return found


def opened(folder: Path, name: str, content: bytes, model_type: str = "llama", **files: Any) -> Tokenizer:
    (folder / name).write_bytes(content)
    for file, held in {"config": {"model_type": model_type}, **files}.items():
        (folder / f"{file}.json").write_text(json.dumps(held))
    return load_tokenizer(folder)


def by_transformers(folder: Path) -> Encode:
    from transformers import AutoTokenizer

    return partial(AutoTokenizer.from_pretrained(folder).encode, add_special_tokens=False)


def different(ours: Tokenizer, theirs: Encode, texts: list[str], **options: bool) -> list[str]:
    return [text for text in texts if ours.encode(text, add_special_tokens=False, **options) != theirs(text)]


def test_sentencepiece_of_mistral(tmp_path: Path) -> None:
    import sentencepiece

    for file in published("mistral_common", "data/*.model.v*"):
        content = file.read_bytes()
        ours = opened(tmp_path, "tokenizer.model", content, "mistral")
        theirs = sentencepiece.SentencePieceProcessor(model_proto=content)
        assert different(ours, theirs.encode, ODD) == [], file.name
        assert all(ours.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text)) for text in ODD)
        assert different(ours, by_transformers(tmp_path), NASTY) == [], file.name
        assert len(ours.encode("a")) == len(theirs.encode("a", add_bos=True))


@pytest.mark.parametrize(("kind", "prefix", "bytes_too"), [*itertools.product(("bpe", "unigram"), (0, 1), (0, 1))])
def test_sentencepiece_as_it_is_trained(kind: str, prefix: int, bytes_too: int, tmp_path: Path) -> None:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type=kind,
        vocab_size=1500,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=bool(prefix),
        byte_fallback=bool(bytes_too),
        user_defined_symbols=["<|x|>", "▁▁", "qq"] if kind == "bpe" else [],
        minloglevel=3,
    )
    ours = opened(tmp_path, "tokenizer.model", model.getvalue())
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    texts = [*ODD, "a<|x|>b", "<|x|>", "qqq", "a  <|x|> <0x0A>"]
    if kind == "unigram":  # whose pieces may be equally likely in another order
        texts = [text for text in texts if not re.search(r"(.)\1{8}", text, re.DOTALL)]
    assert different(ours, theirs.encode, texts) == []


@pytest.mark.parametrize("version", ["llama3", "llama4"])
def test_tiktoken_of_llama(version: str, tmp_path: Path) -> None:
    (file,) = published("llama_models", f"{version}/tokenizer.model")
    ours = opened(tmp_path, "tokenizer.model", file.read_bytes())
    theirs = importlib.import_module(f"llama_models.{version}.tokenizer").Tokenizer(file)
    assert different(ours, lambda text: theirs.model.encode(text, allowed_special="all"), NASTY) == []
    plain = different(ours, theirs.model.encode_ordinary, NASTY, split_special_tokens=True)
    assert plain == []
    assert (ours.bos_token_id, ours.vocab_size) == (theirs.bos_id, theirs.n_words)
    assert ours.encode("a") == theirs.encode("a", bos=True, eos=False)
    assert theirs.eos_id in ours.eos_token_ids


def test_tiktoken_of_qwen(tmp_path: Path) -> None:
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    (file,) = published("dashscope", "resources/qwen.tiktoken")
    (code,) = published("dashscope", "tokenizers/qwen_tokenizer.py")
    pattern = next(line for line in code.read_text().splitlines() if line.startswith("PAT_STR = "))
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205))]
    theirs = tiktoken.Encoding(
        "qwen",
        pat_str=pattern.split('"""')[1],
        mergeable_ranks=load_tiktoken_bpe(str(file)),
        special_tokens={text: 151_643 + number for number, text in enumerate(special)},
    )
    ours = opened(tmp_path, "qwen.tiktoken", file.read_bytes(), "qwen")

    def encode(text: str) -> list[int]:
        return list(theirs.encode(unicodedata.normalize("NFC", text), allowed_special="all"))

    assert different(ours, encode, NASTY) == []
    assert {151_643, 151_645} <= ours.eos_token_ids
    assert not ours.adds_bos


@pytest.mark.parametrize("name", ["tekken_240718.json", "tekken_240911.json"])
def test_tekken(name: str, tmp_path: Path) -> None:
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer
    from transformers import TokenizersBackend

    (file,) = published("mistral_common", f"data/{name}")
    ours = opened(tmp_path, "tekken.json", file.read_bytes(), "mistral")
    theirs = Tekkenizer.from_file(file)
    plain = partial(theirs.encode, bos=False, eos=False)
    assert different(ours, plain, NASTY, split_special_tokens=True) == []
    other = TokenizersBackend.from_pretrained(tmp_path)
    assert different(ours, partial(other.encode, add_special_tokens=False), NASTY) == []
    assert ours.encode("a") == theirs.encode("a", bos=True, eos=False)
    assert ours.vocab_size == theirs.n_words


@pytest.mark.parametrize("model_type", ["gpt2", "qwen2"])
@pytest.mark.parametrize("config", [{}, {"add_prefix_space": True}])
def test_vocab_and_merges(model_type: str, config: dict[str, Any], tmp_path: Path) -> None:
    library = json.loads(BYTE_LEVEL["tokenizer.json"])["model"]
    vocab = {**library["vocab"], "<|endoftext|>": len(library["vocab"])}
    (tmp_path / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{' '.join(pair)}\n" for pair in library["merges"])
    )
    config = config if model_type == "gpt2" else {}
    name = {"gpt2": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer"}[model_type]
    files = {"tokenizer_config": {"tokenizer_class": name, **config}, "added_tokens": {"<more>": len(vocab)}}
    ours = opened(tmp_path, "vocab.json", json.dumps(vocab).encode(), model_type, **files)
    texts = [text for text in NASTY if "<|" not in text]  # where quantkit knows ends of turns by their text
    assert different(ours, by_transformers(tmp_path), [*texts, "a<more>b", "<|endoftext|>a"]) == []
