"""Every command on Mamba-2, which has no attention, so its KV cache has no layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from golden.generate import checkpoint
from invocation import Invoke
from quantkit.quantization.conversion import convert


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("mamba2") / "source", "mamba2")


@pytest.fixture(scope="module")
def mamba(source: Path) -> Path:
    """The model, packed."""
    convert(source, source.parent / "packed")
    return source.parent / "packed"


def test_run(invoke: Invoke, mamba: Path) -> None:
    prompt = ("-p", "one two three one two three", "--ignore-eos", "--temp", 0, "-n", 40)
    plain = invoke("run", mamba, *prompt)
    assert plain.exit_code == 0, plain.stderr
    assert "KV cache:    0 B" in plain.stderr
    assert invoke("run", mamba, *prompt, "--speculate", 8).stdout == plain.stdout


def test_eval(invoke: Invoke, mamba: Path, source: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the one and all that there was for you and not for this but from which they have had " * 20)
    result = invoke("eval", mamba, "-f", text, "-c", 32, "--chunks", 3, "--reference", source, "--json")
    assert result.exit_code == 0, result.stderr
    assert 0 < json.loads(result.stdout)["divergence"]["mean_kl"]["value"] < 1


def test_bench(invoke: Invoke, mamba: Path) -> None:
    result = invoke("bench", mamba, "-p", 8, "-n", 4, "-b", 2, "-r", 1, "--no-warmup", "-o", "json")
    assert result.exit_code == 0, result.stderr
    for row in json.loads(result.stdout):
        assert row["kv_size"] == 0 < row["state_size"]


def test_inspect_and_verify(invoke: Invoke, mamba: Path) -> None:
    assert "mamba2" in invoke("inspect", mamba).stdout
    assert invoke("verify", mamba).exit_code == 0
