"""Importance files in conversions: found by llama.cpp's names, of the right sizes, and written by `calibrate`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

import tiny
from golden.generate import checkpoint as golden_checkpoint
from quantkit.engine.binding import bind
from quantkit.engine.opening import open_model
from quantkit.errors import OptionError, UnsupportedError
from quantkit.formats.gguf.imatrix import Sums, imatrix_bytes, read_imatrix
from quantkit.formats.packed import PackedModel
from quantkit.quantization.calibration import inputs, measuring
from quantkit.quantization.calibration.imatrix import read_importances
from quantkit.quantization.calibration.measuring import calibrate
from quantkit.quantization.conversion import convert
from quantkit.quantization.encode import quantize
from quantkit.quantization.report import Progress

PROSE = Path(__file__).parents[2] / "models" / "prose.txt"
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("imatrix") / "model")


def write(path: Path, entries: Mapping[str, Sums]) -> Path:
    path.write_bytes(b"".join(imatrix_bytes(entries, "text", 1, 512)))
    return path


def sums(columns: int, matrices: int = 1, seed: int = 0) -> Sums:
    rng = np.random.default_rng(seed)
    return Sums(np.exp(2 * rng.standard_normal((matrices, columns))), np.full(matrices, 4000.0))


def test_a_file_decides_what_columns_count(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = sums(64)
    file = write(tmp_path / "file.gguf", {"blk.0.ffn_up.weight": given})
    report = convert(model, tmp_path / "out", "int4", imatrix=file)
    packed, source = PackedModel(tmp_path / "out"), bind(open_model(model)).weights
    stored = given.sums[0].astype(np.float32).astype(np.float64)
    wanted, _ = quantize(source.tensor(UP), "int4", importance=(stored / 4000).astype(np.float32))
    assert packed.tensor(UP).data.tobytes() == wanted.data.tobytes()
    other = UP.replace("up_proj", "gate_proj")
    assert packed.tensor(other).data.tobytes() == quantize(source.tensor(other), "int4")[0].data.tobytes()
    assert "says nothing of 13 matrices, such as" in caplog.text
    assert report.packed_bytes == packed.nbytes
    assert packed.manifest["imatrix"]["file"] == "file.gguf"
    assert "-q int4 --imatrix file.gguf\n" in (tmp_path / "out" / "README.md").read_text()


def test_names_of_llama_cpp_and_stacks_of_experts(tmp_path: Path) -> None:
    bound = bind(open_model(golden_checkpoint(tmp_path, "mixtral")))
    experts = [name for name in bound.program.tensors if "layers.0" in name and name.endswith("w2.weight")]
    columns, given = bound.program.tensors[experts[0]].shape[1], sums(64, 1)
    stacked = sums(columns, len(experts))
    old = tmp_path / "old.gguf"
    for file, values in ((tmp_path / "new.gguf", stacked), (old, Sums(stacked.sums.reshape(1, -1), given.counts))):
        write(file, {"blk.0.ffn_down_exps.weight": values})
        found = read_importances(file, bound.architecture, bound.program, experts).importances
        for place, name in enumerate(experts):
            assert np.corrcoef(found[name], stacked.sums[place])[0, 1] > 0.4
            assert found[name].argmax() in np.argsort(stacked.sums[place])[-5:]


def test_files_of_other_models_are_refused(model: Path, tmp_path: Path) -> None:
    wrong = write(tmp_path / "wrong.gguf", {"blk.0.ffn_up.weight": sums(63)})
    with pytest.raises(OptionError, match=r"is of another model: 'blk.0.ffn_up.weight' has 63 values, .* 64 columns"):
        convert(model, tmp_path / "out", imatrix=wrong)
    strange = write(tmp_path / "strange.gguf", {"blk.7.ffn_up.weight": sums(64)})
    with pytest.raises(OptionError, match=r"says nothing of this model's matrices.*it has 'blk.7"):
        convert(model, tmp_path / "out", imatrix=strange)
    twice = write(tmp_path / "twice.gguf", {"blk.0.ffn_up.weight": sums(64, 2)})
    with pytest.raises(OptionError, match=r"is of another model: 'blk.0.ffn_up.weight' has 128 values, .* 64 columns"):
        convert(model, tmp_path / "out", imatrix=twice)
    longer = write(tmp_path / "longer.gguf", {"blk.0.ffn_up.weight": sums(64), "blk.2.ffn_up.weight": sums(64)})
    with pytest.raises(OptionError, match="is of another model: it has a layer 2, which the model lacks"):
        convert(model, tmp_path / "out", imatrix=longer)
    zeros = write(tmp_path / "zeros.gguf", {"blk.0.attn_q.weight": Sums(np.zeros((1, 64)), np.zeros(1))})
    with pytest.raises(OptionError, match=r"says nothing of this model's matrices.*all that it has is 0"):
        convert(model, tmp_path / "out", imatrix=zeros)
    with pytest.raises(OptionError, match="no matrix becomes one of int4, int5, int6, int8;"):
        convert(model, tmp_path / "out", "int8", overrides=[(".", "f16")], imatrix=wrong)
    with pytest.raises(OptionError, match="imatrix"):
        convert(model, tmp_path / "out", imatrix=wrong, calibration="builtin")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["llama", "mixtral", "falcon_h1"])
def test_what_calibrate_writes_is_what_convert_reads(name: str, tmp_path: Path) -> None:
    model, file = golden_checkpoint(tmp_path / "model", name), tmp_path / "file.gguf"
    steps: list[int] = []
    found = calibrate(model, file, progress=lambda now: steps.append(now.total - now.done))
    assert (found.text, steps[-1]) == ("builtin", 0)
    assert all(name.endswith(".weight") for name in read_imatrix(file))
    bound = bind(open_model(model))
    names = [name for name, spec in bound.program.tensors.items() if spec.role in ("linear", "expert")]
    read = read_importances(file, bound.architecture, bound.program, names)
    assert read.importances.keys() == set(names)
    report = convert(model, tmp_path / "out", imatrix=file, strict=True)
    assert not report.notices


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where is kept what a model has shown, which reads a window at a time."""
    monkeypatch.setattr(measuring, "TURN_WINDOWS", 1)
    monkeypatch.setattr(measuring, "user_cache", SimpleNamespace(entry=lambda kind, name: tmp_path / "kept"))
    return tmp_path / "kept"


def interrupt(turns: float, now: Progress) -> None:
    """Interrupt when the model has read so many of three windows."""
    if now.done > now.total * turns / 3:
        raise KeyboardInterrupt


def test_an_interrupted_measurement_goes_on(model: Path, tmp_path: Path, kept: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(PROSE.read_text()[:2000])
    assert calibrate(model, tmp_path / "whole.gguf", text).tokens == 3 * 512
    for turns in (1.5, 1.8, 2.5):  # twice in the same window
        with pytest.raises(KeyboardInterrupt):
            calibrate(model, tmp_path / "file.gguf", text, progress=partial(interrupt, turns))
        assert not (tmp_path / "file.gguf").exists()
    heard: list[Progress] = []
    with mock.patch.object(inputs, "measure", wraps=inputs.measure) as measured:
        calibrate(model, tmp_path / "file.gguf", text, progress=heard.append)
    assert measured.call_count == 1
    assert heard[-1].done == heard[-1].total
    assert (tmp_path / "file.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert not kept.exists()


def test_what_was_kept_and_is_damaged_counts_as_nothing(model: Path, tmp_path: Path, kept: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(PROSE.read_text()[:2000])
    calibrate(model, tmp_path / "whole.gguf", text)
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, tmp_path / "file.gguf", text, progress=partial(interrupt, 1.5))
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    calibrate(model, tmp_path / "file.gguf", text)
    assert (tmp_path / "file.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_calibrate_refuses_before_it_measures(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "packed")
    with pytest.raises(UnsupportedError, match="is packed already"):
        calibrate(tmp_path / "packed", tmp_path / "file.gguf")
    with pytest.raises(OptionError, match="exists already"):
        calibrate(model, tmp_path / "packed")
    with pytest.raises(OptionError, match="cannot be written"):
        calibrate(model, tmp_path / "nowhere" / "file.gguf")
    for weights in (model / "model.safetensors", model / "file.gguf"):
        with pytest.raises(OptionError, match="belongs to a model"):
            calibrate(model, weights, force=True)
    with pytest.raises(OptionError, match="is another file of this command"):
        calibrate(model / "model.safetensors", model / "model.safetensors", force=True)
    with pytest.raises(OptionError, match="No such file"):
        calibrate(model, tmp_path / "file.gguf", tmp_path / "no.txt")
    assert not (tmp_path / "file.gguf").exists()
