"""Mixed models: the target is kept, overrides win, and what was measured once is not measured again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

import tiny
import tiny_gguf
from golden.generate import checkpoint
from quantkit import formats
from quantkit.errors import OptionError, StrictError
from quantkit.formats.packed import PackedModel
from quantkit.quantization.allocation import known, sensitivity
from quantkit.quantization.allocation import measured as measured_costs
from quantkit.quantization.calibration import CALIBRATED
from quantkit.quantization.calibration.measuring import calibrate
from quantkit.quantization.conversion import convert, convert_all
from quantkit.quantization.encode import dequantize, quantize
from quantkit.quantization.recipe import Recipe
from quantkit.quantization.report import Report
from quantkit.quantization.report.page import page
from quantkit.tensor import Tensor

MEASURED = Recipe("mixed", sensitivities="measured")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is measured is kept here."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(known, "user_cache", SimpleNamespace(entry=lambda kind, name: folder / name))
    return folder


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[str], Tensor]]:
    """What packs the matrices that are measured."""
    found: list[Callable[[str], Tensor]] = []

    def noting(*args: Any) -> Iterator[Any]:
        found.append(args[3])
        return sensitivity.measure(*args)

    monkeypatch.setattr(measured_costs, "measure", noting)
    return found


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels of the units that are measured."""
    labels: list[str] = []

    def noting(*args: Any) -> Iterator[Any]:
        for unit, divergences in sensitivity.measure(*args):
            labels.append(unit.label)
            yield unit, divergences

    monkeypatch.setattr(measured_costs, "measure", noting)
    return labels


def kinds(report: Report) -> dict[str, str]:
    return {tensor.name: tensor.kind for tensor in report.tensors}


@pytest.mark.parametrize("name", ["llama", "mixtral", "qwen3_next", "zamba2", "gpt2", "gemma3n_text"])
def test_the_target_is_kept_and_used(name: str, tmp_path: Path) -> None:
    source = checkpoint(tmp_path, name)
    least = convert(source, tmp_path / "out", Recipe("mixed", target_bpw=32), dry_run=True).allocation
    assert least is not None
    target = int(1.15 * least.least)
    report = convert(source, tmp_path / "out", replace(MEASURED, target_size=target))
    assert 0.9 * target < report.packed_bytes <= target
    assert {"int4", "int5"} <= set(kinds(report).values())
    assert report.allocation is not None
    assert report.allocation.divergence is not None
    assert report.allocation.all_int4 is not None
    assert report.allocation.divergence < report.allocation.all_int4
    assert sum(spec.nbytes for spec in report.tensors) == sum(
        PackedModel(tmp_path / "out").tensor(tensor.name).nbytes for tensor in report.tensors
    )
    assert len({tensor.reason for tensor in report.tensors if tensor.reason.startswith("mixed: ")}) == 2


SOURCES: dict[str, Callable[[Path], Path]] = {
    "tied": partial(tiny.checkpoint, tie_word_embeddings=True),
    **{name: partial(checkpoint, name=name) for name in ("llama", "mixtral", "gpt2", "gemma3n_text", "qwen3_moe")},
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize(
    "overrides",
    [[], [("embed|wte", "f16")], [("embed|wte", "int4"), ("down_proj|w2|c_proj", "int8")]],
    ids=["none", "wide table", "narrow table"],
)
def test_the_default_target_is_what_int4_takes(name: str, overrides: list[tuple[str, str]], tmp_path: Path) -> None:
    source = SOURCES[name](tmp_path / "source")
    int4 = convert(source, tmp_path / "int4", "int4", overrides=overrides, dry_run=True)
    report = convert(source, tmp_path / "out", overrides=overrides, dry_run=True)
    assert report.allocation is not None
    assert report.allocation.target == int4.packed_bytes
    assert report.allocation.least <= report.packed_bytes <= int4.packed_bytes
    assert report.packed_bytes > 0.99 * int4.packed_bytes


def test_more_bytes_are_less_divergence(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "source")
    found = []
    for bits in (5.6, 6.0, 7.0, 9.0, 12.0, 32.0):
        report = convert(source, tmp_path / "out", replace(MEASURED, target_bpw=bits), dry_run=True)
        assert report.allocation is not None
        assert report.bits_per_weight <= bits
        found.append(report.allocation.divergence or 0.0)
    assert found == sorted(found, reverse=True)
    assert found[-1] == 0.0  # everything as it is stored
    assert set(kinds(report).values()) <= {"f16", "bf16", "f32"}


def test_a_target_below_the_least_is_refused_before_anything_is_measured(tmp_path: Path, measured: list[str]) -> None:
    source = tiny.checkpoint(tmp_path / "source")
    for recipe in (replace(MEASURED, target_size="10KB"), replace(MEASURED, target_bpw=2)):
        with pytest.raises(
            OptionError, match=r"^target_(size: 10,000|bpw: 2.0) is too little: .*[\d,]+ bytes, 5.* bits"
        ):
            convert(source, tmp_path / "out", recipe)
    assert measured == []
    assert not (tmp_path / "out").exists()


def test_the_least_that_a_message_names_is_enough(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "source")
    with pytest.raises(OptionError) as caught:
        convert(source, tmp_path / "out", Recipe("mixed", target_size=1))
    words = str(caught.value).split()
    size, bits = words[words.index("bytes,") - 1].replace(",", ""), words[words.index("bits") - 1]
    for recipe in (Recipe("mixed", target_size=size), Recipe("mixed", target_bpw=float(bits))):
        report = convert(source, tmp_path / "out", recipe, dry_run=True)
        assert set(kinds(report).values()) == {"int4", "f32"}


@pytest.mark.parametrize(("stored", "widest"), [("Q4_0", "int4"), ("Q5_0", "int5")])
def test_no_bits_are_spent_on_codes_that_a_narrower_kind_keeps(stored: str, widest: str, tmp_path: Path) -> None:
    file = tiny_gguf.write(tmp_path / "model.gguf", kind=GGMLQuantizationType[stored])
    report = convert(file, tmp_path / "out", Recipe("mixed", target_bpw=8.4))
    assert {kinds(report)[name] for name, kept in report.kept_codes.items() if kept == 1} == {widest}
    assert {kind for name, kind in kinds(report).items() if name.endswith("_proj.weight")} == {widest}


def test_overrides_win(tmp_path: Path, measured: list[str]) -> None:
    source = tiny.checkpoint(tmp_path / "source")
    recipe = MEASURED.with_overrides([("q_proj", "int4"), ("embed", "f16"), (r"layers\.1\..*v_proj", "int8")])
    report = convert(source, tmp_path / "out", recipe)
    for name, kind in kinds(report).items():
        if "q_proj" in name:
            assert kind == "int4"
    assert kinds(report)["model.embed_tokens.weight"] == "f16"
    assert kinds(report)["model.layers.1.self_attn.v_proj.weight"] == "int8"
    assert measured
    assert not any("q_proj" in label or "embed" in label for label in measured)


def test_nothing_is_measured_twice(tmp_path: Path, measured: list[str], cache: Path) -> None:
    source = tiny.checkpoint(tmp_path / "source")
    dry = convert(source, tmp_path / "out", MEASURED, dry_run=True)
    count = len(measured)
    assert count == len(set(measured)) > 10
    report = convert(source, tmp_path / "out", MEASURED)
    convert(source, tmp_path / "other", replace(MEASURED, target_bpw=7))
    assert len(measured) == count
    assert kinds(report) == kinds(dry)
    assert dry.files == {each.name: each.stat().st_size for each in (tmp_path / "out").iterdir()}
    (file,) = cache.iterdir()
    for damage in (b"{", b'{"model.embed_tokens.weight": [NaN]}', b'{"model.embed_tokens.weight": "x"}'):
        file.write_bytes(damage)
        del measured[:]
        assert kinds(convert(source, tmp_path / "out", MEASURED, dry_run=True, force=True)) == kinds(dry)
        assert len(measured) == count


def test_what_was_interrupted_is_measured_on(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny.checkpoint(tmp_path / "source")

    def stop(now: Any) -> None:
        if len(measured) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", MEASURED, progress=stop)
    convert(source, tmp_path / "out", MEASURED)
    assert len(measured) == len(set(measured))


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_what_is_measured_is_what_is_packed(name: str, tmp_path: Path, packings: list[Callable[[str], Tensor]]) -> None:
    source = checkpoint(tmp_path / "source", name)
    calibrate(source, tmp_path / "file.gguf")
    for imatrix in (None, tmp_path / "file.gguf"):
        report = convert(source, tmp_path / "out", MEASURED, imatrix=imatrix, force=True)
        int4 = [name for name, kind in kinds(report).items() if kind == "int4"]
        assert int4
        packed = PackedModel(tmp_path / "out")
        for each in int4:
            assert packings[-1](each).data.tobytes() == packed.tensor(each).data.tobytes()
    plain, under_file = (packing(int4[0]).data.tobytes() for packing in packings)
    assert plain != under_file


def test_what_is_measured_for_a_text_is_calibrated_on_it(
    tmp_path: Path, packings: list[Callable[[str], Tensor]]
) -> None:
    source = tiny.checkpoint(tmp_path / "source", tie_word_embeddings=True)
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog, and runs. " * 200)
    convert(source, tmp_path / "out", MEASURED, calibration=text, dry_run=True)
    stored = formats.open(source)
    for name in ("embed_tokens", "layers.0.self_attn.q_proj", "layers.1.mlp.down_proj"):
        weights = stored.tensor(f"model.{name}.weight")
        packed = packings[0](f"model.{name}.weight")
        assert packed.kind == "int4"
        error, least = (
            sum(float(np.square(found - wanted).sum()) for found, wanted in zip(*map(dequantize, pair), strict=True))
            for pair in ((packed, weights), (quantize(weights, "int4")[0], weights))
        )
        assert error > least  # for which the output is better


def test_layers_cost_less_where_later_ones_make_up_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny.checkpoint(tmp_path / "source", tie_word_embeddings=True)
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog, and runs. " * 200)
    costs = []
    for share in (0.5, 1.0):
        monkeypatch.setattr(measured_costs, "MADE_UP_SHARE", share)
        found = convert(source, tmp_path / "out", MEASURED, calibration=text, dry_run=True).allocation
        assert found is not None
        costs.append(found.costs)
    for name, cost in costs[0].items():
        assert cost == pytest.approx(costs[1][name] * (1.0 if "embed" in name else 0.5))


def test_calibration_changes_what_matters(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "source")
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog, and runs. " * 200)
    report = convert(source, tmp_path / "out", replace(MEASURED, target_bpw=6.5), calibration=text)
    assert report.allocation is not None
    plain = convert(source, tmp_path / "plain", replace(MEASURED, target_bpw=6.5), dry_run=True).allocation
    assert plain is not None
    assert report.allocation.all_int4 is not None
    assert plain.all_int4 is not None
    assert report.allocation.all_int4 < plain.all_int4
    assert report.calibration is not None
    blocks = {name for name, kind in kinds(report).items() if kind in CALIBRATED} - {"model.embed_tokens.weight"}
    assert blocks == {*report.calibration.output_errors, *report.calibration.uncalibrated}
    assert report.bits_per_weight <= 6.5


def test_a_rule_needs_no_run(tmp_path: Path, measured: list[str]) -> None:
    source = checkpoint(tmp_path, "mixtral")
    report = convert(source, tmp_path / "out")
    assert measured == []
    assert report.allocation is not None
    assert report.allocation.divergence is None
    assert set(kinds(report).values()) == {"int4", "int5", "int6", "f32"}
    more = convert(source, tmp_path / "more", Recipe(target_bpw=6.5), dry_run=True)
    assert set(kinds(more).values()) == {"int4", "int5", "int6", "int8", "f32"}
    costs = report.allocation.costs
    layer = "model.layers.1.self_attn"
    assert costs[f"{layer}.v_proj.weight"] > costs[f"{layer}.k_proj.weight"]
    assert b"bytes, spent by a rule</dd>" in page(report)
    assert report.to_dict()["allocation"]["costs"] == costs


def test_a_model_that_cannot_read_has_the_rule(tmp_path: Path, measured: list[str]) -> None:
    source = tiny.checkpoint(tmp_path / "source")
    (source / "tokenizer.json").unlink()
    report = convert(source, tmp_path / "out", MEASURED)
    assert measured == []
    assert any("a rule says what matters" in notice for notice in report.notices)
    assert report.allocation is not None
    assert report.allocation.sensitivities == "rule"
    with pytest.raises(StrictError):
        convert(source, tmp_path / "strict", MEASURED, strict=True)


def test_several_outputs_are_measured_once(tmp_path: Path, measured: list[str]) -> None:
    source = tiny.checkpoint(tmp_path / "source")
    recipes = {tmp_path / str(bits): replace(MEASURED, target_bpw=bits) for bits in (6, 8)} | {tmp_path / "4": "int4"}
    found = convert_all(source, recipes)
    assert len(measured) == len(set(measured))
    sizes = [found[tmp_path / name].packed_bytes for name in ("6", "8")]
    assert sizes == sorted(sizes)
    assert found[tmp_path / "4"].allocation is None


@pytest.mark.parametrize(
    ("recipe", "options", "arguments"),
    [(Recipe(), {}, ""), (MEASURED, {"sensitivities": "measured"}, " --sensitivities measured")],
    ids=["rule", "measured"],
)
def test_the_same_command_makes_the_same_bytes(
    recipe: Recipe, options: dict[str, str], arguments: str, tmp_path: Path
) -> None:
    source = tiny.checkpoint(tmp_path / "source")
    for threads in (1, 2):
        convert(source, tmp_path / f"{threads}", recipe, threads=threads)
    assert (tmp_path / "1/model.safetensors").read_bytes() == (tmp_path / "2/model.safetensors").read_bytes()
    recorded = PackedModel(tmp_path / "1").manifest["options"]
    assert recorded == {"quantize": "mixed", "overrides": [], **options}
    assert f"-q mixed{arguments}\n" in (tmp_path / "1/README.md").read_text()
