"""Conversions end to end, with gradients that are made up: no torch is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from memory_source import MemorySource
from quantkit.errors import OptionError, UnsupportedError
from quantkit.formats.packed import PackedModel, verify
from quantkit.quantization import calibration
from quantkit.quantization.calibration import gradients
from quantkit.quantization.calibration.fisher import Fisher, row_blocks
from quantkit.quantization.calibration.layers import pack_calibrated
from quantkit.quantization.conversion import convert
from quantkit.quantization.plan import make_plans
from quantkit.quantization.recipe import Recipe
from quantkit.quantization.report import Progress
from quantkit.tensor import TensorSpec

Measure = Callable[..., dict[str, Fisher]]
END_TO_END: dict[str, Any] = {"calibration": "builtin", "method": "end-to-end"}


def made_up(seed: int | None) -> Measure:
    """As `measure_fisher`: the same for every token and output, or drawn."""

    def measure(
        source: object, specs: Mapping[str, TensorSpec], windows: Sequence[Sequence[int]], threads: int, tell: Any
    ) -> dict[str, Fisher]:
        rng, found = np.random.default_rng(seed), {}
        for name, spec in specs.items():
            rows = spec.shape[0]
            gradients = np.eye(rows) if seed is None else rng.standard_normal((2 * rows, rows))
            tokens = np.ones(sum(map(len, windows))) if seed is None else rng.random(sum(map(len, windows)))
            moments = [(gradients[:, block].T @ gradients[:, block]).astype(np.float32) for block in row_blocks(rows)]
            found[name] = Fisher(tokens.astype(np.float32), moments)
        for number in range(1, len(windows) + 1):
            tell(number)
        return found

    return measure


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(calibration, "find_spec", lambda name: name)
    monkeypatch.setattr(gradients, "check_gradients", lambda source: None)
    monkeypatch.setattr(gradients, "measure_fisher", made_up(1))
    return tiny.checkpoint(tmp_path / "source", "llama")


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_where_all_cost_the_same_nothing_changes(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "measure_fisher", made_up(None))
    convert(source, tmp_path / "layerwise", calibration="builtin")
    convert(source, tmp_path / "end", **END_TO_END)
    assert weights(tmp_path / "end") == weights(tmp_path / "layerwise")


def test_what_outputs_cost_decides_codes(source: Path, tmp_path: Path) -> None:
    steps: list[Progress] = []
    report = convert(source, tmp_path / "end", **END_TO_END, progress=steps.append)
    convert(source, tmp_path / "layerwise", calibration="builtin")
    assert weights(tmp_path / "end") != weights(tmp_path / "layerwise")
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert steps[-1].done == steps[-1].total
    assert report.calibration is not None
    assert verify(tmp_path / "end")
    assert PackedModel(tmp_path / "end").manifest["calibration"]["method"] == "end-to-end"
    assert "-q int4 --calibration builtin --method end-to-end\n" in (tmp_path / "end/README.md").read_text()


def test_an_interrupted_conversion_keeps_what_was_measured(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(source, tmp_path / "whole", **END_TO_END)

    def stop(now: Progress) -> None:
        if now.tensor == "gradients":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "end", **END_TO_END, progress=stop)
    monkeypatch.setattr(gradients, "measure_fisher", None)
    steps: list[Progress] = []
    convert(source, tmp_path / "end", **END_TO_END, progress=steps.append)
    assert steps[-1].done == steps[-1].total
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "end" / file.name).read_bytes() == file.read_bytes()
    assert len(list((tmp_path / "end").iterdir())) == len(list((tmp_path / "whole").iterdir()))


@pytest.mark.parametrize("tokens", [511, 1024])
def test_measurements_of_another_text_are_refused(source: Path, tokens: int) -> None:
    (plan,) = make_plans(source, [Recipe("int4")])
    name = next(name for name, spec in plan.specs.items() if spec.kind == "int4")
    fisher = {name: Fisher(np.ones(tokens, np.float32))}
    with pytest.raises(OptionError, match=f"{name} is of {tokens} tokens .* not of 512"):
        next(pack_calibrated(plan.program, plan.source, plan.specs, [[5] * 512], 1, fisher=fisher))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "best"}, "method: 'best' is not one of search, layerwise, end-to-end"),
        ({"method": "search", "calibration": "builtin"}, "method search reads no text"),
        ({"method": "layerwise"}, "method layerwise needs a text"),
        ({"method": "end-to-end"}, "method end-to-end needs a text"),
    ],
)
def test_methods_that_do_not_go_with_a_text_are_refused(
    source: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        convert(source, tmp_path / "out", **options)


def test_the_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny.checkpoint(tmp_path / "source", "llama")
    monkeypatch.setattr(calibration, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"needs torch and transformers: pip install 'quantkit\[end-to-end\]'"):
        convert(source, tmp_path / "out", **END_TO_END)


@pytest.mark.parametrize(
    ("folder", "config", "message"),
    [
        ("model.gguf", {}, "model.gguf: method end-to-end needs a checkpoint folder"),
        (".", {"quantization_config": {"bits": 4}}, "its weights are quantized"),
    ],
)
def test_what_transformers_does_not_read_as_it_is_packed_is_refused(
    tmp_path: Path, folder: str, config: dict[str, Any], message: str
) -> None:
    source = MemorySource({}, config)
    source.path = tmp_path / folder
    with pytest.raises(UnsupportedError, match=message):
        gradients.check_gradients(source)
