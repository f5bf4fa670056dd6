"""`quantkit eval`: perplexity of a text, alone and beside a reference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import tiny
from golden import generate as golden
from invocation import Invoke
from quantkit.cli.commands.eval_output import both, nats
from quantkit.evaluation.estimates import QUANTILES, Estimate

SMALL = ("-c", 32, "--chunks", 3)
VALUE = {"value", "error"}


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


FIGURES = {
    "reference_perplexity", "perplexity_ratio", "perplexity_difference", "log_perplexity_ratio", "mean_kl", "mean_dp",
    "rms_dp", "same_top",
}  # fmt: skip
"""Keys of the divergence that hold a value and its error."""


def test_json_has_all_figures_with_their_errors(invoke: Invoke, packed: Path, checkpoint: Path, text: Path) -> None:
    asked = ("eval", packed, "-f", text, *SMALL, "-t", 1, "--kv-bits", 8, "--json")
    found = json.loads(invoke(*asked, "--reference", checkpoint).stdout)
    told = {name: found[name] for name in ("model", "reference", "file", "kv_dtype", "threads")}
    assert told == {
        "model": str(packed), "reference": str(checkpoint), "file": str(text), "kv_dtype": "int8", "threads": 1,
    }  # fmt: skip
    assert (found["windows"], found["context"], found["tokens"]) == (3, 32, 45)
    assert 0 < found["model_size"] < (packed / "model.safetensors").stat().st_size
    assert found["perplexity"]["error"] > 0
    divergence = found["divergence"]
    assert {
        name for name, value in divergence.items() if set(value if isinstance(value, dict) else ()) == VALUE
    } == FIGURES
    for name in ("kl", "dp"):
        quantiles = [divergence[f"{name}_quantiles"][str(share)] for share in QUANTILES]
        assert all(set(each) == VALUE for each in quantiles)
        ranked = [divergence[f"{name}_min"], *(each["value"] for each in quantiles), divergence[f"{name}_max"]]
        assert ranked == sorted(ranked)
    alone = json.loads(invoke(*asked).stdout)
    assert (alone["reference"], alone["divergence"]) == (None, None)
    assert alone["perplexity"] == found["perplexity"]


def test_help_names_every_key(invoke: Invoke, packed: Path, checkpoint: Path, text: Path) -> None:
    found = json.loads(invoke("eval", packed, "-f", text, *SMALL, "--reference", checkpoint, "--json").stdout)
    shown = invoke("eval", "--help").stdout
    for key in (*found, *found["divergence"]):
        assert key in shown


def test_several_models_beside_one_reference(invoke: Invoke, packed: Path, checkpoint: Path, text: Path) -> None:
    asked = ("-f", text, *SMALL, "--reference", checkpoint)
    result = invoke("eval", packed, checkpoint, *asked)
    assert result.exit_code == 0, result.stderr
    headers, first, second, read = result.stdout.splitlines()
    names = [headers.index(name) for name in ("model", "size", "perplexity", "ratio", "mean KL", "RMS Δp", "same top")]
    assert names == sorted(names)
    assert (first.split()[0], second.split()[0]) == (str(packed), str(checkpoint))
    assert "100.00% ± 0.00%" in second
    assert read.startswith("45 tokens scored in 3 windows of 32; perplexity of the reference ")
    both = json.loads(invoke("eval", packed, checkpoint, *asked, "--json").stdout)
    for model, found in zip((packed, checkpoint), both, strict=True):
        assert found == json.loads(invoke("eval", model, *asked, "--json").stdout)
    alone = invoke("eval", packed, checkpoint, "-f", text, *SMALL).stdout
    assert "KL" not in alone


def test_small_divergences_keep_their_digits() -> None:
    figures = [Estimate(0.0961234, 0.00152), Estimate(0.000161, 0.0000123), Estimate(1.25e-7, 2e-9), Estimate(0, 0)]
    shown = [both(each, nats) for each in figures]
    assert shown == ["0.09612 ± 0.00152", "1.6e-04 ± 1.2e-05", "1.2e-07 ± 2.0e-09", "0.00000 ± 0.00000"]


def test_parts_of_the_loss(invoke: Invoke, packed: Path, checkpoint: Path, text: Path) -> None:
    asked = ("eval", packed, "-f", text, *SMALL, "--reference", checkpoint, "--parts", "--kv-bits", 8)
    result = invoke(*asked)
    assert result.exit_code == 0, result.stderr
    headers, *rows, read = result.stdout.splitlines()
    assert headers.split()[:2] == ["part", "perplexity"]
    assert [row.split("  ")[0] for row in rows] == ["weights", "KV cache", "activations", "together"]
    assert read.startswith("45 tokens")
    found = {each["part"]: each for each in json.loads(invoke(*asked, "--json").stdout)}
    kl = {name: each["divergence"]["mean_kl"]["value"] for name, each in found.items()}
    assert 0 < kl["KV cache"] < kl["weights"]
    assert 0 < kl["activations"] < kl["weights"]
    alone = json.loads(invoke("eval", packed, "-f", text, *SMALL, "--kv-bits", 8, "--json").stdout)
    assert found["together"]["perplexity"] == alone["perplexity"]
    assert {each["model_size"] for each in found.values()} == {alone["model_size"]}


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plots_are_pictures(invoke: Invoke, packed: Path, checkpoint: Path, text: Path, suffix: str) -> None:
    picture = text.with_suffix(suffix)
    asked = ("-f", text, *SMALL, "--reference", checkpoint, "--plot", picture)
    for models in ((packed,), (packed, checkpoint)):
        result = invoke("eval", *models, *asked)
        assert result.exit_code == 0, result.stderr
        assert picture.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")
        picture.unlink()


def test_models_that_read_other_tokens_cannot_be_compared(
    invoke: Invoke, packed: Path, checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = []
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    result = invoke("eval", packed, other, "-f", text, *SMALL)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{other}: reads the text as other tokens than {packed}" in result.stderr
    result = invoke("eval", packed, "-f", text, *SMALL, "--reference", other)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{other}: reads the text as other tokens than {packed}" in result.stderr
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).unlink()
    assert invoke("eval", packed, "-f", text, *SMALL, "--reference", other).exit_code == 0


def test_a_vocabulary_that_is_padded_otherwise_has_no_divergence(
    invoke: Invoke, packed: Path, text: Path, tmp_path: Path
) -> None:
    padded = tiny.checkpoint(tmp_path / "padded", vocab_size=384)
    alone = invoke("eval", packed, padded, "-f", text, *SMALL)
    assert alone.exit_code == 0, alone.stderr
    result = invoke("eval", packed, "-f", text, *SMALL, "--reference", padded)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "vocabulary of 320 tokens and its reference one of 384" in result.stderr


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


def test_requests_that_make_no_sense_are_refused_before_anything_is_read(
    invoke: Invoke, packed: Path, checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = ("-f", tmp_path / "missing.txt")
    beside = ("--reference", checkpoint)
    for args, word in [
        ((packed, *missing, "--parts"), "need --reference"),
        ((packed, *missing, "--plot", "a.svg"), "need --reference"),
        ((packed, *missing, *beside, "--plot", "a.txt"), "neither in .png nor in .svg"),
        ((packed, *missing, *beside, "--plot", tmp_path / "nowhere" / "a.svg"), "cannot be written"),
        ((packed, "-f", tmp_path / "a.svg", *beside, "--plot", tmp_path / "a.svg"), "is another file of this command"),
        ((packed, *missing, *beside, "--plot", packed / "a.svg"), "belongs to a model"),
        ((packed, packed, *missing, *beside, "--parts"), "takes one model"),
        ((checkpoint, "-f", text, *SMALL, *beside, "--parts"), "is not packed"),
    ]:
        result = invoke("eval", *args)
        assert (result.exit_code, result.stdout) == (2, ""), args
        assert word in result.stderr
    monkeypatch.setattr("quantkit.evaluation.plot.find_spec", lambda name: None)
    assert "quantkit[plot]" in invoke("eval", packed, *missing, *beside, "--plot", "a.svg").stderr


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
