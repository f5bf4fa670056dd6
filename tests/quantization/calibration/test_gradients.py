"""What torch measures: of the matrices that transformers has as modules, in every kind of family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny
from golden.generate import checkpoint
from quantkit.errors import UnsupportedError
from quantkit.quantization.calibration.fisher import Fisher, row_blocks
from quantkit.quantization.calibration.gradients import check_gradients, measure_fisher
from quantkit.quantization.conversion import convert
from quantkit.quantization.plan import Plan, make_plans
from quantkit.quantization.recipe import Recipe

pytestmark = pytest.mark.live
WINDOWS = np.random.default_rng(1).integers(4, tiny.VOCAB_SIZE, (4, 32)).tolist()


def measured(plan: Plan) -> dict[str, Fisher]:
    check_gradients(plan.source)
    specs = {name: spec for name, spec in plan.specs.items() if spec.kind == "int4"}
    return measure_fisher(plan.source, specs, WINDOWS, threads=1)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("llama", ()),
        ("gemma3n_text", ()),
        ("gpt2", ()),
        ("phi3", ()),
        ("deepseek_v3", ("experts",)),
        ("mixtral", ("experts",)),
        ("qwen3_next", ("experts", "in_proj_qkv")),
        ("falcon_h1", ()),
        ("jamba", ("experts",)),
    ],
)
def test_what_is_a_module_is_measured(name: str, missing: tuple[str, ...], tmp_path: Path) -> None:
    (plan,) = make_plans(checkpoint(tmp_path, name), [Recipe("int4")])
    found = measured(plan)
    assert found
    for matrix, spec in plan.specs.items():
        if spec.kind == "int4" and matrix not in found:
            assert any(word in matrix for word in missing), matrix
    for matrix, each in found.items():
        rows = plan.specs[matrix].shape[0]
        assert each.tokens.shape == (128,)
        assert each.tokens.mean() == pytest.approx(1, rel=1e-3)
        assert (each.tokens >= 0).all()
        assert [len(block) for block in each.outputs] == [block.stop - block.start for block in row_blocks(rows)]
        trace = sum(float(np.trace(block)) for block in each.outputs)
        assert trace == pytest.approx(rows * each.tokens.sum(), rel=2e-2)


def test_the_same_twice(tmp_path: Path) -> None:
    (plan,) = make_plans(tiny.checkpoint(tmp_path / "source", "llama"), [Recipe("int4")])
    one, two = measured(plan), measured(plan)
    assert one.keys() == two.keys()
    for name, each in one.items():
        assert (each.tokens == two[name].tokens).all()
        assert all((a == b).all() for a, b in zip(each.outputs, two[name].outputs, strict=True))


def test_an_architecture_that_transformers_does_not_know_is_refused(tmp_path: Path) -> None:
    (plan,) = make_plans(tiny.checkpoint(tmp_path / "source", "llama"), [Recipe("int4")])
    file = plan.source.path / "config.json"
    file.write_text(file.read_text().replace('"llama"', '"sparrow"'))
    with pytest.raises(UnsupportedError, match="has no language model 'llama'"):
        check_gradients(plan.source)


def test_a_tiny_model_is_packed_end_to_end(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "source", "llama", tie_word_embeddings=True)
    options = {"calibration": "builtin", "overrides": [("embed_tokens", "int4")]}
    report = convert(source, tmp_path / "end", method="end-to-end", **options)  # type: ignore[arg-type]
    convert(source, tmp_path / "layerwise", **options)  # type: ignore[arg-type]
    assert report.calibration is not None
    assert "model.embed_tokens.weight" in report.calibration.output_errors
    end, layerwise = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("end", "layerwise"))
    assert end != layerwise
