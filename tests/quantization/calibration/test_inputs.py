"""How large inputs are: with packed weights as with others, of every family, without a text, and of few rows."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import tiny
from golden.generate import checkpoint
from quantkit.engine.binding import bind
from quantkit.engine.opening import open_model
from quantkit.evaluation.scores import Pair, score
from quantkit.generation.loading import load_model, load_tokenizer
from quantkit.models.parts import cut
from quantkit.quantization.calibration.inputs import Squares, any_tokens, importances_of, measure
from quantkit.quantization.calibration.memory import MEASURED_TOKENS
from quantkit.quantization.calibration.passes import Rows, Weights, rows_of_experts, run_part
from quantkit.quantization.calibration.stops import stops_of
from quantkit.quantization.conversion import convert, folders
from quantkit.quantization.encode import quantize

PROSE = Path(__file__).parents[2] / "models" / "prose.txt"
CASES = ("llama", "gemma3n_text", "gpt2", "deepseek_v3", "mixtral", "gpt_oss", "qwen3_next", "falcon_h1", "zamba2")
"""Gains around 0 and 1, biases, latent attention, experts, states, weights that layers share."""


@pytest.mark.parametrize("name", CASES)
def test_inputs_are_those_of_the_weights_as_they_are(name: str, tmp_path: Path) -> None:
    bound = bind(open_model(checkpoint(tmp_path, name)))
    program, source, windows = bound.program, bound.weights, any_tokens(bound.program)
    names = [name for name, spec in program.tensors.items() if spec.role in ("linear", "expert")]
    told: list[str] = []
    measured = {
        it: squares for squares in measure(program, source, names, windows, 2, told.append) for it in squares.names
    }
    assert sorted(told) == sorted(measured) == sorted(names)
    exact = Weights(source.config, {it: quantize(source.tensor(it), "f32")[0] for it in program.tensors})
    stops = stops_of(program, names)
    rows: dict[int, Rows] = {}
    differences = []
    for part, stop in zip(cut(program, [stop.border for stop in stops]), stops, strict=False):
        run_part(part, exact, rows, windows, 2)
        for shared in stop.shared.values():
            for group, x in zip(shared.names, rows_of_experts(shared, rows, len(windows[0])), strict=True):
                for it in group if len(x) > 16 else ():
                    place = measured[it].names.index(it)
                    found = measured[it].sums[place] / measured[it].counts[place]
                    wanted = np.square(x, dtype=np.float64).mean(axis=0)
                    differences.append(np.abs(found - wanted).sum() / wanted.sum())
    assert np.median(differences) < 0.05


def test_tokens_are_spread_over_the_vocabulary(tmp_path: Path) -> None:
    program = bind(open_model(tiny.checkpoint(tmp_path))).program
    windows = any_tokens(program)
    ids = np.array(windows)
    assert ids.size == MEASURED_TOKENS
    assert (ids.min(), ids.max()) >= (0, tiny.VOCAB_SIZE * 0.98)
    assert ids.max() < tiny.VOCAB_SIZE
    assert len(np.unique(ids)) > 0.96 * min(ids.size, tiny.VOCAB_SIZE)
    assert any_tokens(program) == windows


def test_few_rows_lean_on_those_of_all_experts() -> None:
    sums = np.array([[900.0, 0], [0, 100], [0, 0]])
    means = Squares(("a", "b", "c"), sums, np.array([100, 10, 0])).means
    assert means[0] == pytest.approx(np.array([900 + 8 * 900 / 110, 8 * 100 / 110]) / 108)
    assert means[2] == pytest.approx(np.array([900, 100]) / 110)
    assert Squares(("a",), sums[:1], np.array([100])).means[0] == pytest.approx([9, 0])


def test_what_says_nothing_is_left_out() -> None:
    measured = [
        Squares((name,), np.array([sums]), np.array([3]))
        for name, sums in (("a", [1.0, 2]), ("b", [0.0, 0]), ("c", [np.inf, 1]), ("d", [np.nan, 1]))
    ]
    assert importances_of(iter(measured)).keys() == {"a"}


@pytest.mark.real
def test_a_real_model_loses_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of text that it has not seen: none was needed."""
    source = os.environ["QUANTKIT_TEST_MODEL"]
    convert(source, tmp_path / "measured", "int4")
    monkeypatch.setattr(folders, "_importances", lambda *_, **__: {})
    convert(source, tmp_path / "alike", "int4")
    ids = load_tokenizer(source).encode(PROSE.read_text())
    models = [load_model(folder, context=256) for folder in (source, tmp_path / "measured", tmp_path / "alike")]
    scores = score(models, [Pair(0, 1), Pair(0, 2)], ids, 256, 6)
    measured, alike = scores.kl.mean(axis=1)
    assert measured < 0.75 * alike
