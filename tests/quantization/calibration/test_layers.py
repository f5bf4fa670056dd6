"""Models packed on a text: every family that runs, better on that text than without it, and saying what it did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import quantized
import tiny
from golden.generate import checkpoint
from quantkit.engine.model import Model
from quantkit.errors import OptionError
from quantkit.evaluation.quality import perplexity
from quantkit.formats.packed import PackedModel, verify
from quantkit.generation.loading import load_model, load_tokenizer
from quantkit.quantization import kept_codes
from quantkit.quantization.calibration.layers import pack_calibrated
from quantkit.quantization.conversion import convert
from quantkit.quantization.encode import quantize
from quantkit.quantization.plan import make_plans
from quantkit.quantization.recipe import Recipe
from quantkit.quantization.report.page import page
from scheme_writers import WRITERS

CASES = (
    "llama",
    "gemma3n_text",
    "gpt2",
    "deepseek_v3",
    "mixtral",
    "gpt_oss",
    "qwen3_next",
    "falcon_h1",
    "jamba",
    "zamba2",
)
"""Caches that layers share, biases, experts, states, weights that layers share."""


def text(path: Path, words: int = 800) -> Path:
    rng = np.random.default_rng(2)
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    path.write_text(" ".join("".join(rng.choice(list(alphabet), rng.integers(2, 8))) for _ in range(words)))
    return path


def divergence(packed: Path, reference: Path, ids: list[int]) -> float:
    models: list[Model] = [load_model(each, threads=2, context=128, kv_dtype="f32") for each in (packed, reference)]
    found = perplexity(models[0], ids, 128, reference=models[1]).divergence
    assert found is not None
    return found.mean_kl.value


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_is_packed_once(name: str, tmp_path: Path) -> None:
    (plan,) = make_plans(checkpoint(tmp_path, name), [Recipe("int4")])
    windows = np.random.default_rng(1).integers(4, tiny.VOCAB_SIZE, (8, 64)).tolist()
    packed = list(pack_calibrated(plan.program, plan.source, plan.specs, windows, threads=2))
    assert sorted(each.name for each in packed) == sorted(plan.specs)
    assert all(each.tensor.kind == plan.specs[each.name].kind for each in packed)
    found = {each.name: each.output_error for each in packed if each.tensor.kind == "int4"}
    calibrated = [error for error in found.values() if error is not None]
    assert len(calibrated) > 0.7 * len(found)  # experts that no token goes to are none
    assert max(calibrated) < 0.05


def test_a_calibrated_model_is_nearer_to_its_reference(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "source", "llama")
    file = text(tmp_path / "text.txt")
    dry = convert(source, tmp_path / "calibrated", "int4", calibration=file, dry_run=True)
    report = convert(source, tmp_path / "calibrated", "int4", calibration=file)
    assert dry.files == {each.name: each.stat().st_size for each in (tmp_path / "calibrated").iterdir()}
    assert "-q int4 --calibration text.txt\n" in (tmp_path / "calibrated/README.md").read_text()
    assert b" tokens of text.txt</dd>" in page(report)
    convert(source, tmp_path / "plain", "int4")
    ids = load_tokenizer(source).encode(file.read_text()[:4000])
    assert divergence(tmp_path / "calibrated", source, ids) < 0.6 * divergence(tmp_path / "plain", source, ids)
    assert report.calibration is not None
    assert report.calibration.text == "text.txt"
    assert report.calibration.tokens % 512 == 0
    assert report.calibration.output_errors.keys() == {name for name in report.errors if name.endswith("proj.weight")}
    assert report.calibration.uncalibrated == ()
    assert verify(tmp_path / "calibrated")
    manifest = PackedModel(tmp_path / "calibrated").manifest
    assert manifest["calibration"]["text"] == "text.txt"
    assert manifest["calibration"]["tokens"] == report.calibration.tokens


def test_int8_makes_up_for_int4_before_it(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "source", "llama")
    file = text(tmp_path / "text.txt")
    report = convert(source, tmp_path / "int8", "int4", overrides=[("(o|down)_proj", "int8")], calibration=file)
    assert report.calibration is not None
    assert all(error > 0 for error in report.calibration.output_errors.values())
    assert not any(name.endswith(("o_proj.weight", "down_proj.weight")) for name in report.calibration.output_errors)
    # As they are, these matrices lose nothing, and make up for nothing.
    convert(source, tmp_path / "f32", "int4", overrides=[("(o|down)_proj", "f32")], calibration=file)
    ids = load_tokenizer(source).encode(file.read_text()[:4000])
    assert divergence(tmp_path / "int8", source, ids) < 0.97 * divergence(tmp_path / "f32", source, ids)


def test_codes_of_a_quantized_source_stay(tmp_path: Path) -> None:
    """No text makes others come as near."""
    _, source = quantized.checkpoints(tmp_path, *WRITERS["gptq"])
    convert(source, tmp_path / "free")
    report = convert(source, tmp_path / "calibrated", calibration=text(tmp_path / "text.txt"))
    models = [PackedModel(tmp_path / name) for name in ("free", "calibrated")]
    assert report.calibration is not None
    assert report.calibration.uncalibrated == ()
    for name, error in report.calibration.output_errors.items():
        assert 0 < error < 1e-3
        free, calibrated = (model.tensor(name) for model in models)
        assert calibrated.data.tobytes() == free.data.tobytes()
        assert report.kept_codes[name] == 1
    for packed in models:
        assert {entry.get("kept_codes") for entry in packed.manifest["tensors"].values()} == {None, 1}


def test_codes_that_a_text_improves_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, source = quantized.checkpoints(tmp_path, *WRITERS["gptq"])
    monkeypatch.setitem(kept_codes.NEGLIGIBLE, "int4", 0.0)
    report = convert(source, tmp_path / "calibrated", calibration=text(tmp_path / "text.txt"))
    assert report.calibration is not None
    assert {report.kept_codes[name] for name in report.calibration.output_errors} == {0.0}


def test_threads_do_not_change_a_calibrated_model(tmp_path: Path) -> None:
    source, file = tiny.checkpoint(tmp_path / "source", "llama"), text(tmp_path / "text.txt")
    packed = []
    for threads in (1, 3):
        convert(source, tmp_path / f"{threads}", calibration=file, threads=threads)
        packed.append((tmp_path / f"{threads}" / "model.safetensors").read_bytes())
    assert packed[0] == packed[1]


def test_an_embedding_that_is_the_head_too_is_calibrated_as_the_head(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "source", "llama", tie_word_embeddings=True)
    (plan,) = make_plans(source, [Recipe("int4").with_overrides([("embed_tokens", "int4")])])
    windows = np.random.default_rng(1).integers(4, tiny.VOCAB_SIZE, (8, 64)).tolist()
    packed = list(pack_calibrated(plan.program, plan.source, plan.specs, windows, threads=2))
    assert sorted(each.name for each in packed) == sorted(plan.specs)
    (table,) = (each for each in packed if each.name == "model.embed_tokens.weight")
    assert table.output_error is not None
    assert table.error > quantize(plan.source.tensor(table.name), "int4")[1]  # for which the output is better


def test_a_table_that_is_looked_up_alone_has_nothing_to_calibrate(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "source", "llama")
    recipe = Recipe("int4").with_overrides([("embed_tokens|lm_head", "int4")])
    report = convert(source, tmp_path / "packed", recipe, calibration=text(tmp_path / "text.txt"))
    assert report.calibration is not None
    assert report.calibration.uncalibrated == ()
    assert "lm_head.weight" in report.calibration.output_errors
    assert "model.embed_tokens.weight" not in report.calibration.output_errors


def test_experts_that_meet_too_few_tokens_are_packed_without(tmp_path: Path) -> None:
    (plan,) = make_plans(checkpoint(tmp_path, "mixtral"), [Recipe("int4")])
    windows = np.random.default_rng(1).integers(4, tiny.VOCAB_SIZE, (1, 12)).tolist()
    packed = list(pack_calibrated(plan.program, plan.source, plan.specs, windows, threads=1))
    rare = [each for each in packed if each.tensor.kind == "int4" and each.output_error is None]
    assert rare
    for each in rare:
        assert "experts" in each.name
        alone, error = quantize(plan.source.tensor(each.name), "int4")
        assert (each.tensor.data == alone.data).all()
        assert each.error == error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"\xff\xfe", "not UTF-8"),
        (b"too short", "has [0-9]+ tokens; at least 1024 are needed"),
    ],
    ids=["missing", "not utf-8", "short"],
)
def test_a_text_that_cannot_be_used_is_refused_first(tmp_path: Path, content: bytes | None, message: str) -> None:
    source = tiny.checkpoint(tmp_path / "source", "llama")
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(OptionError, match=f"calibration: .*text.txt.*{message}"):
        convert(source, tmp_path / "packed", calibration=tmp_path / "text.txt")
    assert not (tmp_path / "packed").exists()


def test_without_a_tokenizer_there_is_no_text(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "source", "llama")
    (source / "tokenizer.json").unlink()
    with pytest.raises(OptionError, match=r"has no tokenizer\.json"):
        convert(source, tmp_path / "packed", calibration=text(tmp_path / "text.txt"))


def test_what_needs_no_calibration_says_so(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "source", "llama")
    with pytest.raises(OptionError, match="no matrix becomes one of int4, int5, int6, int8;"):
        convert(source, tmp_path / "packed", overrides=[(".", "f16")], calibration=text(tmp_path / "text.txt"))
