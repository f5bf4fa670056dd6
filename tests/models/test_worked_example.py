"""The architecture that CONTRIBUTING.md adds as an example runs, as it stands there: from a checkpoint to logits."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reference
import tiny
from quantkit import formats
from quantkit.engine.binding import bind
from quantkit.engine.model import Model
from quantkit.errors import UnsupportedError
from quantkit.generation.loading import load_model
from quantkit.models import registry
from quantkit.quantization.conversion import convert

CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"
TOLERANCE = 1e-4
PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38]


def block(name: str) -> str:
    """Return the code that stands behind a file's name."""
    found = re.findall(rf"<!-- {re.escape(name)} -->\n```python\n(.*?)```\n", CONTRIBUTING.read_text(), re.DOTALL)
    assert len(found) == 1
    return str(found[0])


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example is a family, and has a checkpoint."""
    file = tmp_path / "sparrow.py"
    file.write_text(block("sparrow.py"))
    spec = importlib.util.spec_from_file_location("quantkit.models.families.dense.sparrow", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    row = eval(f"{{{block('registry.py')}}}", {"Row": registry.Row})
    monkeypatch.setattr(registry, "FAMILIES", registry.Families({**registry.ROWS, **row}))
    monkeypatch.setattr(tiny, "FAMILIES", tiny.FAMILIES | eval(f"{{{block('tiny.py')}}}"))
    tensors = registry.read(tiny.config_of("sparrow")).record().tensors.values()
    stored = {piece.name: piece.shape for spec in tensors for piece in spec.pieces or (spec,)}
    return tiny.checkpoint(tmp_path / "model", "sparrow", dtype="F32", tensors=stored)


@pytest.fixture
def model(checkpoint: Path) -> Iterator[Model]:
    model = load_model(checkpoint, kv_dtype="f32", threads=2)
    yield model
    model.close()


def test_it_computes_what_numpy_does(checkpoint: Path, model: Model) -> None:
    bound = bind(formats.open(checkpoint))
    expected = reference.logits(bound.program, bound.weights, PROMPT)
    np.testing.assert_allclose(model(PROMPT), expected, rtol=0, atol=TOLERANCE)
    with model.new_sequence() as sequence:
        one_by_one = [model.forward([(sequence, [token])]) for token in PROMPT]
    np.testing.assert_array_equal(np.concatenate(one_by_one), model(PROMPT))


def test_its_flags_count(checkpoint: Path, model: Model, tmp_path: Path) -> None:
    shapes = {name: formats.open(checkpoint).spec(name).shape for name in formats.open(checkpoint).names}
    flags: dict[str, Any] = {"residual_multiplier": 1.0, "hidden_act": "silu"}
    for flag, value in flags.items():
        other = tiny.checkpoint(tmp_path / flag, "sparrow", dtype="F32", tensors=shapes, **{flag: value})
        changed = load_model(other, kv_dtype="f32", threads=1)
        assert np.abs(changed(PROMPT) - model(PROMPT)).max() > 100 * TOLERANCE
        changed.close()


def test_it_is_packed_in_four_bits(checkpoint: Path, tmp_path: Path) -> None:
    assert "self_attn.qkv_proj.weight" in " ".join(formats.open(checkpoint).names)
    convert(checkpoint, tmp_path / "packed", "int4")
    packed = load_model(tmp_path / "packed", threads=1)
    assert np.isfinite(packed(PROMPT)).all()
    packed.close()


def test_what_it_does_not_compute_is_refused(checkpoint: Path) -> None:
    with pytest.raises(UnsupportedError, match="sliding_window is 16"):
        registry.read(tiny.config_of("sparrow", sliding_window=16))


def test_without_its_row_it_is_not_known() -> None:
    with pytest.raises(UnsupportedError, match="model_type 'sparrow' is not supported"):
        registry.read({"model_type": "sparrow"})
