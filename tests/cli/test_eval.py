"""`quantkit eval`: perplexity of a text, alone and beside a reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from golden import generate as golden
from invocation import Invoke

SMALL = ("-c", 32, "--chunks", 3)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("the one and all that there was for you and not for this but from which they have had " * 20)
    return file


def test_perplexity(invoke: Invoke, packed: Path, text: Path) -> None:
    result = invoke("eval", packed, "-f", text, *SMALL)
    assert result.exit_code == 0, result.stderr
    perplexity, scored = result.stdout.splitlines()
    assert perplexity.startswith("perplexity ")
    assert " ± " in perplexity
    assert scored.endswith("45 in 3 windows of 32")


def test_special_tokens_in_the_text_are_ordinary_characters(invoke: Invoke, packed: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("<|im_end|>" * 16)
    result = invoke("eval", packed, "-f", text, "-c", 8)
    assert result.stdout.endswith("in 20 windows of 8\n")  # ten characters each, and a BOS before them


def test_a_model_beside_its_checkpoint(invoke: Invoke, packed: Path, checkpoint: Path, text: Path) -> None:
    result = invoke("eval", packed, "-f", text, *SMALL, "--reference", checkpoint)
    assert result.exit_code == 0, result.stderr
    names = [line[:22].strip() for line in result.stdout.splitlines()]
    assert {"perplexity", "reference perplexity", "mean KL divergence", "KL quantile 99.0%", "same top token"} <= set(
        names
    )
    found = json.loads(invoke("eval", packed, "-f", text, *SMALL, "--reference", checkpoint, "--json").stdout)
    assert 0 < found["divergence"]["mean_kl"]["value"] < 1


def test_a_model_beside_itself_does_not_diverge(invoke: Invoke, packed: Path, text: Path) -> None:
    found = json.loads(invoke("eval", packed, "-f", text, *SMALL, "--reference", packed, "--json").stdout)
    assert found["divergence"]["kl_max"] == 0
    assert found["divergence"]["same_top"]["value"] == 1


def test_windows_beyond_the_length_of_short_texts(invoke: Invoke, text: Path, tmp_path: Path) -> None:
    model = golden.checkpoint(tmp_path / "model", "phi3_long_text")  # 32 tokens are short, 256 the most
    for size in (32, 64):
        result = invoke("eval", model, "-f", text, "-c", size, "--chunks", 1)
        assert result.exit_code == 0, result.stderr
    assert invoke("eval", model, "-f", text, "-c", 512).exit_code == 2


def test_bad_requests(invoke: Invoke, packed: Path, text: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a")
    for args, status, word in [
        (("-f", tmp_path / "missing.txt"), 1, "missing.txt"),
        (("-f", short), 2, "context"),
        (("-f", short, "-c", 32), 1, "the text has"),
        (("-f", text, "-c", 32, "--chunks", 0), 2, "chunks"),
        (("-f", text, "-c", 1 << 20), 2, "context"),
    ]:
        result = invoke("eval", packed, *args)
        assert (result.exit_code, result.stdout) == (status, ""), args
        assert word in result.stderr
        assert result.stderr.count("\n") == 1
