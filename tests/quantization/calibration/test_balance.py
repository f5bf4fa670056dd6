"""Columns made alike: where that can be done, a model that computes the same, and less that is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import quantized
import tiny
from golden.generate import checkpoint
from quantkit import formats
from quantkit.engine.model import Model
from quantkit.evaluation.quality import perplexity
from quantkit.formats.packed import PackedModel, verify
from quantkit.generation.loading import load_model, load_tokenizer
from quantkit.models import registry
from quantkit.quantization.calibration import BALANCED, balance
from quantkit.quantization.calibration.balance import Balanced, factors_of, sites_of
from quantkit.quantization.conversion import convert
from quantkit.quantization.plan import make_plans
from quantkit.quantization.recipe import Recipe
from quantkit.quantization.report import Progress
from scheme_writers import WRITERS

Names = tuple[list[str], list[str]]


def text(folder: Path, words: int = 800) -> Path:
    rng = np.random.default_rng(2)
    (folder / "text.txt").write_text(" ".join("".join(rng.choice(list("abcdefgh"), 5)) for _ in range(words)))
    return folder / "text.txt"


def sites(model_type: str, kind: str = "int8") -> list[Names]:
    """The sites where linear layers are of a kind, and the head of int8: their makers and readers."""
    program = registry.read(tiny.config_of(model_type)).record()
    kinds = {"linear": kind, "head": "int8"}
    specs = {name: replace(spec, kind=kinds.get(spec.role, "f32")) for name, spec in program.tensors.items()}
    return [(short(site.makers), short(site.readers)) for site in sites_of(program, specs)]


def short(names: object) -> list[str]:
    return [name.removesuffix(".weight").rpartition(".")[2] for name in names]  # type: ignore[attr-defined]


def test_columns_are_those_of_norms_and_of_gated_products() -> None:
    layer = [
        (["input_layernorm"], ["q_proj", "k_proj", "v_proj"]),
        (["post_attention_layernorm"], ["gate_proj", "up_proj"]),
        (["up_proj"], ["down_proj"]),
    ]
    assert sites("llama") == [*layer * 2, (["norm"], ["lm_head"])]
    assert sites("llama", "int4") == [(["norm"], ["lm_head"])]


def test_a_site_is_scaled_as_far_as_its_narrowest_kind_bears() -> None:
    program = registry.read(tiny.config_of("llama")).record()
    for kind, exponent in (("int8", -0.25), ("int5", BALANCED["int5"]), ("int4", None)):
        kinds = {name: kind if name.endswith("k_proj.weight") else "int8" for name in program.tensors}
        found = sites_of(program, {name: replace(spec, kind=kinds[name]) for name, spec in program.tensors.items()})
        exponents = {site.exponent for site in found if any("k_proj" in name for name in site.readers)}
        assert exponents == (set() if exponent is None else {exponent})


def test_what_others_read_too_stays() -> None:
    assert [readers for _, readers in sites("mixtral")] == [["q_proj", "k_proj", "v_proj"]] * 2 + [["lm_head"]]
    assert (["norm"], ["embed_tokens"]) not in sites("gemma2")  # a table that is the head too


@pytest.mark.parametrize("case", ["llama", "gemma2", "gpt2", "phi", "phi3", "nemotron", "qwen2", "olmo2", "falcon_h1"])
def test_the_model_computes_the_same(case: str, tmp_path: Path) -> None:
    """With offsets and biases of norms, and tensors that are stored side by side or transposed."""
    (plan,) = make_plans(checkpoint(tmp_path, case), [Recipe("int8")])
    found = sites_of(plan.program, plan.specs)
    assert found
    random = np.random.default_rng(0)
    columns = [plan.specs[site.readers[0]].shape[1] for site in found]
    factors = [np.exp(random.uniform(-2, 2, count)).astype(np.float32) for count in columns]
    other = Balanced(plan.source, list(zip(found, factors, strict=True)))
    ids = random.integers(4, tiny.VOCAB_SIZE, 24).tolist()
    logits = []
    for weights in (plan.source, other):
        with Model(plan.program, weights, context_length=64, threads=1) as model:
            logits.append(model(ids))
    np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=2e-4 * np.abs(logits[0]).max())


def test_rows_are_those_of_the_whole_tensor(tmp_path: Path) -> None:
    (plan,) = make_plans(checkpoint(tmp_path, "llama"), [Recipe("int8")])
    found = sites_of(plan.program, plan.specs)
    columns = [plan.specs[site.readers[0]].shape[1] for site in found]
    factors = [np.arange(1, count + 1, dtype=np.float32) for count in columns]
    other = Balanced(plan.source, list(zip(found, factors, strict=True)))
    for name in other.names:
        assert other.tensor(name).data[3:9].tobytes() == other.entries(name, slice(3, 9)).tobytes()
        assert other.spec(name).kind == other.tensor(name).kind


def test_large_columns_become_smaller_and_small_ones_larger() -> None:
    factors = factors_of(np.array([0, 1e-8, 1, 16, 256], np.float32), -0.25)
    assert (np.diff(factors) <= 0).all()
    assert factors[2] / factors[3] == pytest.approx(2)
    assert np.log(factors).sum() == pytest.approx(0, abs=1e-5)
    assert np.isfinite(factors).all()


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """A checkpoint some columns of whose norms are far larger than others."""
    source = tiny.checkpoint(tmp_path / "source", "llama", dtype="F32")
    model = formats.open(source)
    arrays: dict[str, NDArray[np.float32]] = {name: model.tensor(name, copy=True).data.copy() for name in model.names}
    for name, array in arrays.items():
        if name.endswith("layernorm.weight"):
            array[::16] *= 30
    tiny.write_safetensors(source / "model.safetensors", {name: ("F32", array) for name, array in arrays.items()})
    return source


def divergence(packed: Path, reference: Path, ids: list[int]) -> float:
    models: list[Model] = [load_model(each, threads=2, context=128, kv_dtype="f32") for each in (packed, reference)]
    found = perplexity(models[0], ids, 128, reference=models[1]).divergence
    assert found is not None
    return found.mean_kl.value


def test_int8_loses_less_on_a_text(uneven: Path, tmp_path: Path) -> None:
    file = text(tmp_path)
    report = convert(uneven, tmp_path / "balanced", "int8", calibration=file)
    assert report.calibration is not None
    assert not report.calibration.output_errors
    assert not report.calibration.uncalibrated
    assert max(report.errors.values()) < 1e-4
    verify(tmp_path / "balanced")
    convert(uneven, tmp_path / "plain", "int8")
    ids = load_tokenizer(uneven).encode(file.read_text()[:3000])
    assert divergence(tmp_path / "balanced", uneven, ids) < 0.7 * divergence(tmp_path / "plain", uneven, ids)


@pytest.mark.parametrize("kind", ["int5", "int6"])
def test_kinds_that_are_calibrated_lose_less_too(
    uneven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    file = text(tmp_path)
    convert(uneven, tmp_path / "balanced", kind, calibration=file)
    monkeypatch.setattr(balance, "BALANCED", {})
    convert(uneven, tmp_path / "plain", kind, calibration=file)
    ids = load_tokenizer(uneven).encode(file.read_text()[:3000])
    assert divergence(tmp_path / "balanced", uneven, ids) < 0.9 * divergence(tmp_path / "plain", uneven, ids)


def test_codes_of_a_quantized_source_stay(tmp_path: Path) -> None:
    _, source = quantized.checkpoints(tmp_path, *WRITERS["gptq"])
    reports = [
        convert(source, tmp_path / "alone", "int8"),
        convert(source, tmp_path / "on a text", "int8", calibration=text(tmp_path)),
    ]
    assert reports[0].kept_codes
    assert reports[0].kept_codes == reports[1].kept_codes


def test_an_interrupted_conversion_goes_on(uneven: Path, tmp_path: Path) -> None:
    file = text(tmp_path)
    steps: list[Progress] = []

    def progress(now: Progress) -> None:
        steps.append(now)
        if len(steps) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(uneven, tmp_path / "out", "int8", calibration=file, progress=progress)
    convert(uneven, tmp_path / "out", "int8", calibration=file)
    convert(uneven, tmp_path / "whole", "int8", calibration=file)
    first, second = (PackedModel(tmp_path / name) for name in ("out", "whole"))
    for name in first.names:
        assert first.tensor(name).data.tobytes() == second.tensor(name).data.tobytes()
