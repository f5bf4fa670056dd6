"""What a source holds meets what a program reads: aliases, optional tensors, left-overs, and weights left out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny
from memory_source import MemorySource
from quantkit import formats
from quantkit.errors import CheckpointError, PackedModelError
from quantkit.formats import ModelSource
from quantkit.formats.mapped import MappedFile
from quantkit.quantization.conversion import convert
from quantkit.tensor import GroupScales, Piece, Tensor, TensorSpec

UP = "model.layers.0.mlp.up_proj.weight"


def source_of(folder: Path, *names: str) -> ModelSource:
    """A folder whose tensors have these names, the shape (2, 3), and values that tell them apart."""
    tiny.checkpoint(folder)
    values = {name: np.full((2, 3), number, np.float32) for number, name in enumerate(names)}
    tiny.write_safetensors(folder / "model.safetensors", {name: ("F32", array) for name, array in values.items()})
    return formats.open(folder)


def program(*specs: TensorSpec | str) -> Mapping[str, TensorSpec]:
    found = [TensorSpec(spec, (2, 3)) if isinstance(spec, str) else spec for spec in specs]
    return {spec.name: spec for spec in found}


def test_a_tensor_under_its_alias(tmp_path: Path) -> None:
    source = source_of(tmp_path, UP, "lm_head.weight")
    embedding = TensorSpec("model.embed_tokens.weight", (2, 3), "embedding", aliases=("lm_head.weight",))
    selection = source.select(program(embedding, UP))
    assert selection.names == (UP, embedding.name)  # in the order of the file
    assert selection.unused == ()
    assert selection.spec(embedding.name).kind == "f32"
    assert selection.spec(embedding.name).role == "embedding"
    assert selection.tensor(embedding.name).data.max() == 1
    assert selection.file_of(embedding.name) == tmp_path / "model.safetensors"
    assert (selection.config, selection.nbytes) == (source.config, source.nbytes)
    assert (selection.files, selection.identity()) == (source.files, source.identity())


def test_its_own_name_comes_before_aliases_and_the_copy_is_harmless(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = source_of(tmp_path, "lm_head.weight", "model.embed_tokens.weight")
    embedding = TensorSpec("model.embed_tokens.weight", (2, 3), aliases=("lm_head.weight",))
    assert source.select(program(embedding)).tensor(embedding.name).data.max() == 1
    assert caplog.text == ""


def test_an_optional_tensor_stands_for_zeros(tmp_path: Path) -> None:
    bias = TensorSpec("model.layers.0.mlp.up_proj.bias", (2,), optional=True)
    selection = source_of(tmp_path, UP).select(program(UP, bias))
    tensor = selection.tensor(bias.name)
    assert (tensor.kind, tensor.shape, tensor.data.tolist()) == ("f32", (2,), [0.0, 0.0])
    assert selection.spec(bias.name).kind == "f32"
    assert selection.file_of(bias.name) == tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.up_proj.bias",
        "model.layers.0.mlp.up_proj.weight_scale_inv",
        "model.layers.0.self_attn.q_norm.weight",
        "model.norm.bias",
    ],
)
def test_a_weight_of_a_layer_in_use_must_be_used(name: str, tmp_path: Path) -> None:
    source = source_of(tmp_path, UP, "model.norm.weight", name)
    with pytest.raises(CheckpointError, match=f"model.safetensors: the model does not use tensor '{name}' of a layer"):
        source.select(program(UP, "model.norm.weight"))


def test_other_left_overs(tmp_path: Path) -> None:
    source = source_of(
        tmp_path,
        UP,
        "model.layers.0.self_attn.rotary_emb.inv_freq",  # computed, not read
        "model.layers.0.attn.bias",  # the causal mask
        "model.layers.0.attention.masked_bias",
        "model.layers.1.mlp.up_proj.weight",  # of a layer that the configuration does not count
        "vision_tower.layers.0.mlp.up_proj.weight",
        "adapter.weight",
    )
    assert source.select(program(UP)).unused == (
        "model.layers.1.mlp.up_proj.weight",
        "vision_tower.layers.0.mlp.up_proj.weight",
        "adapter.weight",
    )


PREFIXES = (("language_model.model.", "model."), ("language_model.", ""))


def test_names_may_begin_otherwise(tmp_path: Path) -> None:
    source = source_of(tmp_path, f"language_model.{UP}", "language_model.lm_head.weight", "vision.weight")
    embedding = TensorSpec("model.embed_tokens.weight", (2, 3), aliases=("lm_head.weight",))
    selection = source.select(program(UP, embedding), PREFIXES, {"model_type": "another"})
    assert [selection.tensor(name).data.max() for name in (UP, embedding.name)] == [0, 1]
    assert selection.unused == ("vision.weight",)
    assert selection.config == {"model_type": "another"}
    assert selection.names == (UP, embedding.name)
    assert not source.copies_differ(embedding, PREFIXES)


def test_copies_may_begin_otherwise(tmp_path: Path) -> None:
    source = source_of(tmp_path, "language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
    embedding = TensorSpec("model.embed_tokens.weight", (2, 3), aliases=("lm_head.weight",))
    assert source.copies_differ(embedding, PREFIXES)
    assert source.select(program(embedding), PREFIXES).unused == ()


def test_pieces_may_begin_otherwise(tmp_path: Path) -> None:
    name = QKV.removeprefix("model.")
    source = fused_source(tmp_path, **{f"language_model.model.{name}": FUSED + 1, QKV: None})
    tensor = source.select(program(rows_of(8, 12)), PREFIXES).tensor(rows_of(8, 12).name)
    np.testing.assert_array_equal(tensor.data, FUSED[8:] + 1)


def test_messages_have_the_names_of_the_file(tmp_path: Path) -> None:
    source = source_of(tmp_path, f"language_model.{UP}", f"language_model.{UP.replace('weight', 'bias')}")
    with pytest.raises(CheckpointError, match=r"does not use tensor 'language_model\.model\..*bias'"):
        source.select(program(UP), PREFIXES)
    with pytest.raises(CheckpointError, match=r"tensor 'language_model.model\..*' has shape \(2, 3\), .* \(3, 3\)"):
        source.select(program(TensorSpec(UP, (3, 3))), PREFIXES)


QKV, NORMS = "model.layers.0.self_attn.qkv_proj.weight", "model.layers.0.self_attn.norms"
FUSED = np.arange(48, dtype=np.float32).reshape(12, 4)


def fused_source(folder: Path, **tensors: NDArray[Any] | None) -> ModelSource:
    """A folder with the tensor `QKV`, and others; None leaves one out."""
    stored = {name: array for name, array in ({QKV: FUSED} | tensors).items() if array is not None}
    kinds = {"float32": "F32", "float16": "F16", "uint16": "BF16"}
    tiny.checkpoint(folder)
    entries = {name: (kinds[array.dtype.name], array) for name, array in stored.items()}
    tiny.write_safetensors(folder / "model.safetensors", entries)
    return formats.open(folder)


def rows_of(begin: int, end: int, **options: Any) -> TensorSpec:
    name = f"model.layers.0.self_attn.{begin}_{end}.weight"
    pieces = (Piece(QKV, options.pop("shape", (12, 4)), begin, end, **{"period": 12} | options),)
    return TensorSpec(name, (end - begin, 4), "linear", pieces=pieces)


@pytest.mark.parametrize("copy", [False, True])
def test_rows_of_a_fused_tensor(copy: bool, tmp_path: Path) -> None:
    q, kv = rows_of(0, 8), rows_of(8, 12)
    selection = fused_source(tmp_path).select(program(kv, q))
    assert selection.unused == ()
    for spec, rows in ((q, FUSED[:8]), (kv, FUSED[8:])):
        tensor = selection.tensor(spec.name, copy=copy)
        assert (tensor.kind, tensor.shape) == ("f32", spec.shape) == (selection.spec(spec.name).kind, rows.shape)
        np.testing.assert_array_equal(tensor.data, rows)
        assert tensor.data.flags.c_contiguous
        assert tensor.data.flags.writeable == copy  # a map is not
        assert selection.file_of(spec.name) == tmp_path / "model.safetensors"


def test_only_the_rows_that_are_wanted_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    selection = fused_source(tmp_path).select(program(rows_of(8, 12)))
    read: list[tuple[int, ...]] = []
    original = MappedFile.read

    def noted(file: MappedFile, dtype: str, shape: tuple[int, ...], begin: int) -> NDArray[Any]:
        read.append(shape)
        return original(file, dtype, shape, begin)

    monkeypatch.setattr(MappedFile, "read", noted)
    selection.tensor(rows_of(8, 12).name, copy=True)
    assert read == [(4, 4)]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16])
def test_other_patterns_become_arrays_of_their_own(dtype: type, tmp_path: Path) -> None:
    stored: NDArray[Any] = np.arange(48).reshape(4, 12).astype(dtype)
    source = fused_source(tmp_path, **{QKV: stored})
    spec = TensorSpec("q.weight", (6, 4), pieces=(Piece(QKV, (4, 12), 1, 2, 2, transposed=True),))
    tensor = source.select(program(spec)).tensor("q.weight")
    assert tensor.data.flags.c_contiguous
    assert tensor.data.dtype == dtype
    np.testing.assert_array_equal(tensor.data, stored.T[1::2])


class QuantizedSource(MemorySource):
    """A source whose scales are every 32nd column of its numbers, and whose mins are their opposites."""

    def group_scales(self, name: str, wanted: slice) -> GroupScales | None:
        scales = self.entries(name, wanted)[..., ::32]
        return GroupScales(scales, -scales, 4)


PIECES: Mapping[str, tuple[tuple[Piece, ...], bool]] = {
    "all": ((Piece("a.weight", (24, 64)),), True),
    "some rows": ((Piece("a.weight", (24, 64), 6, 18, 24),), True),
    "rows of each period": ((Piece("a.weight", (24, 64), 2, 5, 6),), True),
    "several": ((Piece("a.weight", (24, 64), 0, 6, 12), Piece("b.weight", (24, 64), 12, 24, 24)), True),
    "rows in pairs": ((Piece("a.weight", (24, 64), pairs=3),), True),
    "rows in another order": ((Piece("a.weight", (24, 64), order=tuple(range(23, -1, -1))),), True),
    "a matrix of a stack": ((Piece("stack.weight", (3, 24, 64), index=1),), True),
    "rows of a matrix of a stack": ((Piece("stack.weight", (3, 24, 64), 12, 24, 24, index=2),), True),
    "a matrix below others": ((Piece("a.weight", (24, 64), index=1, stacked=2),), True),
    "columns": ((Piece("a.weight", (24, 64), transposed=True),), False),
    "columns in another order": ((Piece("a.weight", (24, 64), order=tuple(range(63, -1, -1)), columns=True),), False),
    "other numbers": ((Piece("a.weight", (24, 64), decoder="minus_one"),), False),
    "another shape": ((Piece("a.weight", (48, 32), reshaped=True),), False),
}


@pytest.mark.parametrize("case", PIECES)
def test_scales_go_with_their_rows(case: str) -> None:
    pieces, kept = PIECES[case]
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"a.weight": (24, 64), "b.weight": (24, 64), "stack.weight": (3, 24, 64)}
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    source = QuantizedSource({name: Tensor("f32", array.shape, array) for name, array in arrays.items()})
    columns = 24 if pieces[0].transposed else pieces[0].shape[-1]
    spec = TensorSpec("w.weight", (sum(piece.rows for piece in pieces), columns), pieces=pieces)
    selection = source.select(program(spec))
    for rows in (slice(None), slice(0, 4), slice(4, spec.shape[0]), slice(5, 6)):
        found = selection.group_scales("w.weight", rows)
        assert (found is not None) == kept
        if found is not None:
            expected = selection.entries("w.weight", rows)[:, ::32]
            np.testing.assert_array_equal(found.scales, expected)
            np.testing.assert_array_equal(found.mins, -expected)


def test_pieces_one_below_the_other(tmp_path: Path) -> None:
    norms = {f"{NORMS}.{head}.weight": np.full(3, head, np.float32) for head in range(4)}
    spec = TensorSpec("norms", (12,), pieces=tuple(Piece(name, (3,)) for name in norms))
    source = fused_source(tmp_path, **norms)
    tensor = source.select(program(spec, rows_of(0, 12))).tensor("norms")
    np.testing.assert_array_equal(tensor.data, np.repeat(np.arange(4), 3))


def test_its_own_name_comes_before_pieces(tmp_path: Path) -> None:
    spec = rows_of(0, 2)
    source = fused_source(tmp_path, **{spec.name: np.full((2, 4), 7, np.float32)})
    assert source.select(program(spec, rows_of(2, 12))).tensor(spec.name).data.max() == 7


def test_an_optional_piece_stands_for_zeros(tmp_path: Path) -> None:
    bias = TensorSpec("q.bias", (3,), optional=True, pieces=(Piece("qkv.bias", (9,), 0, 3, 9),))
    source = fused_source(tmp_path)
    assert not source.select(program(bias, rows_of(0, 12))).tensor("q.bias").data.any()


SPOILT: dict[str, tuple[dict[str, NDArray[Any]], TensorSpec, str]] = {
    "too few rows": ({QKV: FUSED[:11]}, rows_of(0, 8), r"has shape \(11, 4\), its configuration asks for \(12, 4\)"),
    "too many rows": ({QKV: np.zeros((13, 4), np.float32)}, rows_of(0, 8), r"\(13, 4\), its .* asks for \(12, 4\)"),
    "no matrix": ({QKV: np.zeros(48, np.float32)}, rows_of(0, 8), r"shape \(48,\), its .* asks for \(12, 4\)"),
    "not transposed": ({}, rows_of(0, 8, shape=(4, 12), transposed=True), r"\(12, 4\), its .* asks for \(4, 12\)"),
    "no stack": ({}, rows_of(0, 8, shape=(3, 12, 4), index=2), r"\(12, 4\), its .* asks for \(3, 12, 4\)"),
    "not there": (
        {QKV: FUSED},
        TensorSpec("q.weight", (8, 4), pieces=(Piece("qkv.weight", (12, 4), 0, 8, 12),)),
        r"has no tensor 'qkv\.weight' of shape \(12, 4\)",
    ),
    "a part is not there": (
        {f"{NORMS}.0.weight": np.zeros(3, np.float32)},
        TensorSpec("norms", (6,), pieces=tuple(Piece(f"{NORMS}.{head}.weight", (3,)) for head in range(2))),
        r"has no tensor '.*norms\.1\.weight'",
    ),
    "parts of several kinds": (
        {f"{NORMS}.0.weight": np.zeros(3, np.float32), f"{NORMS}.1.weight": np.zeros(3, np.float16)},
        TensorSpec("norms", (6,), pieces=tuple(Piece(f"{NORMS}.{head}.weight", (3,)) for head in range(2))),
        r"norms\.1\.weight' is f16 and '.*norms\.0\.weight' is f32, but both are one tensor",
    ),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_stored_tensors_that_pieces_do_not_fit(fault: str, tmp_path: Path) -> None:
    tensors, spec, message = SPOILT[fault]
    with pytest.raises(CheckpointError, match=message):
        fused_source(tmp_path, **tensors).select(program(spec))


def test_of_blocks_no_rows_can_be_taken(tmp_path: Path) -> None:
    convert(tiny.checkpoint(tmp_path / "model"), tmp_path / "packed")
    stored = "model.layers.0.mlp.up_proj.weight"
    spec = TensorSpec("half.weight", (80, 64), pieces=(Piece(stored, (160, 64), 0, 80, 160),))
    with pytest.raises(PackedModelError, match=r"up_proj\.weight' is int4, of which no rows can be taken"):
        formats.open(tmp_path / "packed").check(program(spec))
