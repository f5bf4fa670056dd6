"""Checkpoints that store tensors fused, transposed, in stacks or in parts: the model is the same, to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny
from quantkit import formats
from quantkit.engine.binding import bind
from quantkit.errors import CheckpointError
from quantkit.formats.packed import PackedModel
from quantkit.generation.loading import load_model
from quantkit.models import registry
from quantkit.models.stored import Fused, Split, Stored, described
from quantkit.quantization.conversion import convert
from quantkit.quantization.dequantization import dequantize
from quantkit.tensor import Piece, Tensor, TensorSpec
from quantkit_kernels import blocks

Tensors = dict[str, NDArray[Any]]
Store = Callable[[list[NDArray[Any]]], NDArray[Any]]
"""How a checkpoint makes one tensor of several."""
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def interleaved(parts: list[NDArray[Any]], groups: int) -> NDArray[Any]:
    """The rows of the first group of each part, then of the second, ..."""
    split = [np.split(part, groups) for part in parts]
    return np.concatenate([rows for group in zip(*split, strict=True) for rows in group])


def fuse(module: str, parts: tuple[str, ...], store: Store) -> Any:
    """A change of a checkpoint: in every layer, and for weights and biases, parts become one tensor."""

    def change(tensors: Tensors) -> Tensors:
        for name in [name for name in tensors if f".{parts[0]}." in name]:
            prefix, kind = name.split(parts[0])
            tensors[f"{prefix}{module}{kind}"] = store([tensors.pop(f"{prefix}{part}{kind}") for part in parts])
        return tensors

    return change


def split(module: str, part: str, count: int) -> Any:
    """A change of a checkpoint: a module's tensors become several."""

    def change(tensors: Tensors) -> Tensors:
        for name in [name for name in tensors if f".{module}." in name]:
            parts = np.split(tensors.pop(name), count)
            for number, values in enumerate(parts):
                tensors[name.replace(module, part.replace("*", str(number)))] = values
        return tensors

    return change


ALTERNATING: dict[str, tuple[Stored, Callable[[Tensors], Tensors]]] = {
    "one below the other": (
        Fused("self_attn.qkv_proj", QKV),
        fuse("self_attn.qkv_proj", QKV, np.concatenate),
    ),
    "by heads": (
        Fused("attention.query_key_value", QKV, groups="num_key_value_heads"),
        fuse("attention.query_key_value", QKV, lambda parts: interleaved(parts, 2)),
    ),
    "row by row": (
        Fused("mlp.gate_up", ("mlp.up_proj", "mlp.gate_proj"), groups="intermediate_size"),
        fuse("mlp.gate_up", ("mlp.up_proj", "mlp.gate_proj"), lambda parts: interleaved(parts, 160)),
    ),
    "side by side": (
        Fused("attn.c_attn", QKV, transposed=True),
        fuse("attn.c_attn", QKV, lambda parts: np.concatenate(parts).T),
    ),
    "transposed alone": (
        Fused("mlp.c_proj", ("mlp.down_proj",), transposed=True),
        fuse("mlp.c_proj", ("mlp.down_proj",), lambda parts: parts[0].T),
    ),
    "in parts": (
        Split("mlp.up_proj", "mlp.up.*.linear", "num_attention_heads"),
        split("mlp.up_proj", "mlp.up.*.linear", 4),
    ),
    "norms in parts": (
        Split("input_layernorm", "input_layernorm.norms.*", "num_attention_heads"),
        split("input_layernorm", "input_layernorm.norms.*", 4),
    ),
}


def weights(config: Mapping[str, Any], dtype: str) -> Tensors:
    return {name: tiny.encode_dtype(tiny.weight(name, shape), dtype) for name, shape in tiny.shapes(config).items()}


def checkpoint(folder: Path, tensors: Tensors, dtype: str, **config: Any) -> Path:
    tiny.checkpoint(folder, dtype=dtype, **config)
    tiny.write_safetensors(folder / "model.safetensors", {name: (dtype, array) for name, array in tensors.items()})
    return folder


def halves(tensor: Tensor) -> NDArray[np.float16]:
    return blocks.dequantize(tensor.kind, tensor.data, tensor.row_scales, tensor.shape).astype(np.float16)


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give llama rows of another family."""

    def give(*rows: Stored) -> None:
        llama = registry.FAMILIES["llama"]
        monkeypatch.setattr(registry, "FAMILIES", {**registry.FAMILIES, "llama": llama._replace(stored=rows)})

    return give


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("way", ALTERNATING)
def test_ways_to_store(way: str, dtype: str, family: Callable[..., None], tmp_path: Path) -> None:
    row, change = ALTERNATING[way]
    family(row)
    biased: dict[str, Any] = {"attention_bias": True, "mlp_bias": True}
    tensors = weights(tiny.config_of(**biased), dtype)
    plain = checkpoint(tmp_path / "plain", tensors, dtype, **biased)
    other = checkpoint(tmp_path / "other", change(dict(tensors)), dtype, **biased)
    assert set(formats.open(other).names) != set(tensors)
    for source in (plain, other):
        assert convert(source, tmp_path / f"{source.name}-packed").unused == ()
    first, second = (PackedModel(tmp_path / f"{name}-packed") for name in ("plain", "other"))
    assert set(first.names) == set(second.names)
    for name in first.names:
        assert first.manifest["tensors"][name] == second.manifest["tensors"][name]


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("way", ALTERNATING)
def test_rows_are_those_of_the_tensor(way: str, copy: bool, family: Callable[..., None], tmp_path: Path) -> None:
    row, change = ALTERNATING[way]
    family(row)
    tensors = weights(tiny.config_of(), "BF16")
    other = bind(formats.open(checkpoint(tmp_path / "other", change(tensors), "BF16"))).weights
    for name in other.names:
        whole = other.tensor(name).data
        for rows in (slice(0, 3), slice(5, 37), slice(8, len(whole)), slice(len(whole) - 1, len(whole))):
            np.testing.assert_array_equal(other.entries(name, rows, copy=copy), whole[rows], err_msg=name)
    inside = {name for name in other.names if not other.reads_rows(name)}
    transposed = {"side by side": QKV, "transposed alone": ("mlp.down_proj",)}.get(way, ())
    assert inside == {name for name in other.names if any(f"{module}.weight" in name for module in transposed)}


@pytest.mark.parametrize("way", ALTERNATING)
def test_what_is_unpacked_is_stored_as_it_was(way: str, family: Callable[..., None], tmp_path: Path) -> None:
    row, change = ALTERNATING[way]
    family(row)
    source = checkpoint(tmp_path / "source", change(weights(tiny.config_of(), "F16")), "F16")
    convert(source, tmp_path / "packed")
    dequantize(tmp_path / "packed", tmp_path / "out")
    packed, unpacked = PackedModel(tmp_path / "packed"), formats.open(tmp_path / "out")
    expected = change({name: halves(packed.tensor(name)) for name in packed.names})
    assert set(unpacked.names) == set(expected) == set(formats.open(source).names)
    for name, values in expected.items():
        np.testing.assert_array_equal(unpacked.tensor(name).data, values)


@pytest.mark.parametrize("way", ALTERNATING)
def test_they_run_as_they_are(way: str, family: Callable[..., None], tmp_path: Path) -> None:
    row, change = ALTERNATING[way]
    family(row)
    tensors = weights(tiny.config_of(), "F16")
    answers = []
    for name, stored in (("plain", tensors), ("other", change(dict(tensors)))):
        model = load_model(checkpoint(tmp_path / name, stored, "F16"), threads=1)
        answers.append(model([3, 1, 4, 1, 5]))
        model.close()
    np.testing.assert_array_equal(answers[0], answers[1])


EXPERTS = 3
SIZES = registry.read(
    tiny.config_of(hidden_size=4, intermediate_size=6, num_attention_heads=1, num_key_value_heads=1)
).config


def experts() -> dict[str, TensorSpec]:
    """What a program of experts, each by itself, reads: a hidden size of 4, and 6 columns between."""
    shapes = {"gate_proj": (6, 4), "up_proj": (6, 4), "down_proj": (4, 6)}
    specs: dict[str, TensorSpec] = {}
    for expert in range(EXPERTS):
        for module, shape in shapes.items():
            name = f"model.layers.0.mlp.experts.{expert}.{module}"
            specs |= {f"{name}.weight": TensorSpec(f"{name}.weight", shape)}
            specs |= {f"{name}.bias": TensorSpec(f"{name}.bias", shape[:1])}
    return specs


GATE_UP = ("mlp.experts.*.gate_proj", "mlp.experts.*.up_proj")
STACKS: dict[str, tuple[Stored, Store]] = {
    "rows alternate, transposed": (
        Fused("mlp.experts.gate_up", GATE_UP, "intermediate_size", transposed=True, weight="", bias="_bias"),
        lambda parts: interleaved(parts, 6).T,
    ),
    "one below the other": (
        Fused("mlp.experts.gate_up", GATE_UP, weight="", bias="_bias"),
        np.concatenate,
    ),
    "side by side": (
        Fused("mlp.experts.gate_up", GATE_UP, transposed=True, weight="", bias="_bias"),
        lambda parts: np.concatenate(parts).T,
    ),
}


@pytest.mark.parametrize("way", STACKS)
@pytest.mark.parametrize("copy", [False, True])
def test_experts_in_a_stack(way: str, copy: bool, tmp_path: Path) -> None:
    row, store = STACKS[way]
    specs = experts()
    wanted: Tensors = {}
    stored: Tensors = {}
    for kind, ending in (("weight", ""), ("bias", "_bias")):
        names = [f"model.layers.0.mlp.experts.{expert}.{{}}.{kind}" for expert in range(EXPERTS)]
        for name in names:
            for module in ("gate_proj", "up_proj", "down_proj"):
                spec = specs[name.format(module)]
                wanted[spec.name] = tiny.weight(spec.name, spec.shape)
        fused = [store([wanted[name.format("gate_proj")], wanted[name.format("up_proj")]]) for name in names]
        stored[f"model.layers.0.mlp.experts.gate_up{ending}"] = np.stack(fused)
        stored[f"model.layers.0.mlp.experts.down{ending}"] = np.stack(
            [wanted[name.format("down_proj")] for name in names]
        )
    down = Fused("mlp.experts.down", ("mlp.experts.*.down_proj",), weight="", bias="_bias")
    program = described(specs, [row, down], SIZES)
    selection = formats.open(checkpoint(tmp_path / "model", stored, "F32")).select(program)
    assert selection.unused == ()
    for name, values in wanted.items():
        tensor = selection.tensor(name, copy=copy)
        assert tensor.shape == values.shape
        assert tensor.data.flags.c_contiguous
        np.testing.assert_array_equal(tensor.data, values)


def test_one_expert_is_read_alone(tmp_path: Path) -> None:
    row = Fused("mlp.experts.up", ("mlp.experts.*.up_proj",), weight="", bias="_bias")
    program = described(experts(), [row], SIZES)
    spec = program["model.layers.0.mlp.experts.1.up_proj.weight"]
    assert spec.pieces == (Piece("model.layers.0.mlp.experts.up", (3, 6, 4), 0, 6, 6, 1),)
    assert spec.pieces[0].entries == slice(1, 2)


@pytest.mark.parametrize("transposed", [False, True])
def test_experts_below_each_other_in_one_matrix(transposed: bool, tmp_path: Path) -> None:
    module = "down_proj" if transposed else "up_proj"
    row = Fused("mlp.experts.all", (f"mlp.experts.*.{module}",), weight="", flat=True, transposed=transposed)
    specs = {name: spec for name, spec in experts().items() if f"{module}.weight" in name}
    stored = np.arange(EXPERTS * 6 * 4, dtype=np.float32).reshape(EXPERTS * 6, 4)
    source = checkpoint(tmp_path / "model", {"model.layers.0.mlp.experts.all": stored}, "F32")
    selection = formats.open(source).select(described(specs, [row], SIZES))
    for expert, name in enumerate(specs):
        rows = stored[6 * expert : 6 * expert + 6]
        np.testing.assert_array_equal(selection.tensor(name).data, rows.T if transposed else rows)
        assert selection.tensor(name).shape == specs[name].shape


def test_a_stack_of_another_size_is_refused(tmp_path: Path) -> None:
    row = Fused("mlp.experts.up", ("mlp.experts.*.up_proj",), weight="", bias="_bias")
    specs = {name: spec for name, spec in experts().items() if "up_proj.weight" in name}
    source = checkpoint(tmp_path / "model", {"model.layers.0.mlp.experts.up": np.zeros((4, 6, 4), np.float32)}, "F32")
    with pytest.raises(CheckpointError, match=r"experts\.up' has shape \(4, 6, 4\), its .* asks for \(3, 6, 4\)"):
        formats.open(source).select(described(specs, [row], SIZES))


def phi3(folder: Path, spoil: Callable[[Tensors], Any]) -> Path:
    """A tiny Phi-3, spoilt."""
    tensors = fuse("self_attn.qkv_proj", QKV, np.concatenate)(weights(tiny.config_of("llama"), "BF16"))
    tensors = fuse("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj"), np.concatenate)(tensors)
    spoil(tensors)
    tiny.checkpoint(folder, "phi3", tensors={})
    tiny.write_safetensors(folder / "model.safetensors", {name: ("BF16", array) for name, array in tensors.items()})
    return folder


FUSED = "model.layers.1.self_attn.qkv_proj.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda it: it.pop(FUSED), rf"has no tensor '{FUSED}' of shape \(128, 64\)"),
        (lambda it: it.update({FUSED: it[FUSED][:96]}), rf"{FUSED}' has shape \(96, 64\), .* asks for \(128, 64\)"),
        (lambda it: it.update({FUSED: it[FUSED].T}), rf"{FUSED}' has shape \(64, 128\), .* asks for \(128, 64\)"),
        (
            lambda it: it.update({FUSED.replace("weight", "bias"): it[FUSED][:, 0]}),
            "does not use tensor '.*qkv_proj.bias'",
        ),
    ],
)
def test_fused_tensors_that_do_not_fit(spoil: Callable[[Tensors], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"model: {message}|model.safetensors: .*{message}"):
        convert(phi3(tmp_path / "model", spoil), tmp_path / "out")


def test_the_same_model_fused_or_not(tmp_path: Path) -> None:
    """What is stored under the program's own names is taken as it is."""
    fused = phi3(tmp_path / "fused", lambda it: None)
    plain = tiny.checkpoint(tmp_path / "plain", "phi3", tensors=tiny.shapes(tiny.config_of("llama")))
    for source in (fused, plain):
        convert(source, tmp_path / f"{source.name}-packed")
    first, second = (PackedModel(tmp_path / f"{name}-packed").manifest["tensors"] for name in ("fused", "plain"))
    assert first == second
