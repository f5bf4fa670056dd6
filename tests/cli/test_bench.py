"""`quantkit bench`: llama-bench's tests, columns and keys."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from quantkit import benchmark

SMALL = ("-p", "16,0", "-n", "4", "-d", "0,8", "-r", "2")


@pytest.fixture(autouse=True)
def bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring it takes longer than these tests."""
    monkeypatch.setattr(benchmark, "measure_bandwidth", lambda threads: threads * 1e9)


def test_json_has_the_keys_of_llama_bench(invoke, packed: Path) -> None:
    result = invoke("bench", packed, *SMALL, "-t", "1,2", "-o", "json")
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)
    names = ["pp16", "tg4", "pp16 @ d8", "tg4 @ d8"]
    assert [(row["n_threads"], row["test"]) for row in rows] == [
        (threads, name) for threads in (1, 2) for name in names
    ]
    for row in rows:
        assert {"model_filename", "model_type", "model_size", "model_n_params", "cpu_info", "backends"} <= row.keys()
        assert {"n_prompt", "n_gen", "n_depth", "avg_ns", "stddev_ns", "avg_ts", "stddev_ts"} <= row.keys()
        assert len(row["samples_ns"]) == len(row["samples_ts"]) == 2
        assert row["avg_ts"] > 0
        assert row["bandwidth_gbs"] == row["n_threads"]
        assert (row["read_gbs"] is None) == (row["n_gen"] == 0)


def test_the_table_has_the_columns_of_llama_bench(invoke, packed: Path) -> None:
    result = invoke("bench", packed, *SMALL)
    header, rule, *rows = result.stdout.splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")][:7] == [
        "model", "size", "params", "backend", "threads", "test", "t/s",
    ]  # fmt: skip
    assert set(rule) <= set("|-: ")
    assert " ± " in rows[0]


def test_no_tokenizer_is_needed(invoke, packed: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(packed, bare)
    (bare / "tokenizer.json").unlink()
    assert invoke("bench", bare, *SMALL).exit_code == 0


def test_what_does_not_fit_the_context_is_refused(invoke, packed: Path) -> None:
    result = invoke("bench", packed, "-p", "100000")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "pp100000 does not fit" in result.stderr
