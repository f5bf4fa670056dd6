"""`quantkit bench`: llama-bench's tests, columns and keys."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path

import pytest

import golden.generate as golden
from invocation import Invoke
from quantkit.evaluation import benchmark
from quantkit_kernels.attention.pages import PAGE

SMALL = ("-p", "16,0", "-n", "4", "-d", "0-8+8", "-r", "2")


class Probe:
    """Ceilings that take no time to measure: 1 GB/s and 2 GMAC/s for each thread."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def read_bandwidth(self, repeats: int = 1) -> list[float]:
        return [self.threads * 1e9] * repeats

    def int8_peak(self, repeats: int = 1) -> list[float]:
        return [self.threads * 2e9] * repeats


@pytest.fixture(autouse=True)
def probe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(benchmark, "open_probe", Probe)
    monkeypatch.setattr(benchmark, "_bandwidth_file", lambda: tmp_path / "bandwidth.json")  # not the user's


def test_json_has_the_keys_of_llama_bench(invoke: Invoke, packed: Path) -> None:
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
        assert (row["bandwidth_gbs"], row["int8_gmacs"]) == (row["n_threads"], 2 * row["n_threads"])
        assert row["bandwidth_share"] == pytest.approx(row["read_gbs"] / row["bandwidth_gbs"])
        assert row["int8_share"] == pytest.approx(row["gmacs"] / row["int8_gmacs"])


def test_every_form_tells_the_same(invoke: Invoke, packed: Path) -> None:
    options = ("-p", "16", "-n", "2", "-b", "1,3", "-r", "1")
    array = json.loads(invoke("bench", packed, *options, "-o", "json").stdout)
    lines = [json.loads(line) for line in invoke("bench", packed, *options, "-o", "jsonl").stdout.splitlines()]
    table = list(csv.DictReader(io.StringIO(invoke("bench", packed, *options, "-o", "csv").stdout)))
    for rows in (array, lines, table):
        assert [row["test"] for row in rows] == ["pp16", "tg2", "tg2 b3"]
    assert array[0].keys() == lines[0].keys()
    assert set(table[0]) == set(array[0]) - {"samples_ns", "samples_ts", "operations"}


def test_operations_make_up_the_time(invoke: Invoke, packed: Path) -> None:
    result = invoke("bench", packed, "-p", "16", "-n", "0", "-r", "1", "--ops", "-o", "json")
    (row,) = json.loads(result.stdout)
    operations = {operation["operation"]: operation for operation in row["operations"]}
    assert {"linear q_proj", "linear lm_head", "attention", "gated + quantize", "(waiting)"} <= operations.keys()
    assert sum(operation["share"] for operation in operations.values()) == pytest.approx(1)
    assert operations["linear q_proj"]["bytes"] > 0
    assert operations["attention"]["macs"] > 0
    assert "linear q_proj" in invoke("bench", packed, "-p", "16", "-n", "0", "-r", "1", "--ops").stdout
    assert invoke("bench", packed, "--ops", "-o", "csv").exit_code == 2


@pytest.mark.parametrize("suffix", ["png", "svg"])
@pytest.mark.parametrize("lists", [(), ("-d", "0,8"), ("-b", "1,2"), ("-d", "0,8", "-b", "1,2")])
def test_plots_are_pictures(invoke: Invoke, packed: Path, tmp_path: Path, suffix: str, lists: tuple[str, ...]) -> None:
    picture = tmp_path / f"speed.{suffix}"
    result = invoke("bench", packed, "-p", "8", "-n", "2", "-r", "1", *lists, "--plot", picture)
    assert result.exit_code == 0, result.stderr
    assert picture.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [r"$\frac$", os.fsdecode(b"caf\xe9"), "\x1b[1m"])
def test_plots_of_models_with_odd_names(invoke: Invoke, packed: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(packed, tmp_path / name)
    result = invoke("bench", tmp_path / name, "-p", "8", "-n", "0", "-r", "1", "--plot", tmp_path / "speed.svg")
    assert result.exit_code == 0, result.stderr


def test_a_plot_without_matplotlib_is_refused_before_the_model_is_looked_at(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantkit.evaluation.plot.find_spec", lambda name: None)
    result = invoke("bench", tmp_path / "nothing", "--plot", tmp_path / "speed.png")
    assert "quantkit[plot]" in result.stderr
    assert invoke("bench", tmp_path / "nothing", "--plot", tmp_path / "speed.jpg").exit_code == 2


@pytest.mark.parametrize("values", ["", "x", "4-1", "1-4*1", "0-4*2", "1,,2", "1-4+0", "-1", "9" * 5000])
def test_lists_that_make_no_sense_are_refused(invoke: Invoke, packed: Path, values: str) -> None:
    result = invoke("bench", packed, f"--n-prompt={values}")
    assert (result.exit_code, result.stdout) == (2, "")


def test_an_int8_cache_is_named(invoke: Invoke, packed: Path) -> None:
    result = invoke("bench", packed, "-p", "8", "-n", "2", "-r", "1", "--kv-bits", "8", "-o", "json")
    rows = json.loads(result.stdout)
    assert {row["type_k"] for row in rows} == {"int8"}
    plain = json.loads(invoke("bench", packed, "-p", "8", "-n", "2", "-r", "1", "-o", "json").stdout)
    for row, exact in zip(rows, plain, strict=True):
        assert 0.5 <= row["kv_size"] / exact["kv_size"] < 0.6


def test_the_cache_is_counted_in_pages(invoke: Invoke, packed: Path) -> None:
    depths = f"0,{PAGE - 1},{PAGE}"
    result = invoke("bench", packed, "-p", "0", "-n", "1", "-d", depths, "-b", "1,2", "-r", "1", "-o", "json")
    sizes = [row["kv_size"] for row in json.loads(result.stdout)]
    assert [size / sizes[0] for size in sizes] == [1, 2, 1, 2, 2, 4]


def test_what_recurrent_layers_keep_is_counted_by_sequence(invoke: Invoke, packed: Path, tmp_path: Path) -> None:
    folder, options = golden.checkpoint(tmp_path, "lfm2"), ("-p", "0", "-n", "2", "-d", "5", "-r", "2")
    rows = json.loads(invoke("bench", folder, *options, "-b", "1,3", "-o", "json").stdout)
    assert [row["state_size"] for row in rows] == [1024, 3 * 1024]
    assert invoke("bench", folder, *options).stdout.splitlines()[0].split("|")[-2].strip() == "state"
    assert invoke("bench", packed, *options).stdout.splitlines()[0].split("|")[-2].strip() == "KV"


def test_the_table_has_the_columns_of_llama_bench(invoke: Invoke, packed: Path) -> None:
    result = invoke("bench", packed, *SMALL)
    header, rule, *rows = result.stdout.splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")][:7] == [
        "model", "size", "params", "backend", "threads", "test", "t/s",
    ]  # fmt: skip
    assert set(rule) <= set("|-: ")
    assert " ± " in rows[0]


def test_no_tokenizer_is_needed(invoke: Invoke, packed: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(packed, bare)
    (bare / "tokenizer.json").unlink()
    assert invoke("bench", bare, *SMALL).exit_code == 0


def test_what_does_not_fit_the_context_is_refused(invoke: Invoke, packed: Path) -> None:
    result = invoke("bench", packed, "-p", "100000")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "context is 100000; expected 1 to " in result.stderr
