"""Packed folders: what is written is read, whatever is damaged is refused by name, every flipped byte is found."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from quantkit.errors import PackedModelError
from quantkit.formats.packed import PackedModel, is_packed, verify
from quantkit.formats.packed.writer import Contents, write_packed
from quantkit.tensor import Tensor, TensorSpec
from quantkit_kernels import blocks

CONFIG, WEIGHTS, MANIFEST = "config.json", "model.safetensors", "quantkit.json"
SHAPES = {
    "embed.weight": ("int8", (19, 40)),
    "up.weight": ("int4", (24, 64)),
    "gate.weight": ("int4", (3, 5)),
    "half.weight": ("f16", (3, 5)),
    "brain.weight": ("bf16", (7, 2)),
    "norm.weight": ("f32", (5,)),
    "up.bias": ("f32", (3,)),
}
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "U8": np.uint8}


def random_tensor(kind: str, shape: tuple[int, ...], random: np.random.Generator) -> Tensor:
    data_shape, scales_shape = blocks.expected_shapes(kind, shape)
    data = random.integers(0, 127, data_shape).astype(DTYPES[blocks.KINDS[kind].storage])
    scales = None if scales_shape is None else random.standard_normal(scales_shape).astype(np.float32)
    return Tensor(kind, shape, data, scales)


def tensors() -> dict[str, Tensor]:
    random = np.random.default_rng(0)
    return {name: random_tensor(kind, shape, random) for name, (kind, shape) in SHAPES.items()}


def write(path: Path, changed: dict[str, Tensor] | None = None) -> Path:
    """Write a packed folder of all kinds."""
    specs = {name: TensorSpec(name, shape, kind=kind) for name, (kind, shape) in SHAPES.items()}
    about = {"source": {"identity": "f"}, "options": {"quantize": "int4"}}
    with write_packed(path, Contents({"model_type": "llama"}, specs, {"tokenizer.json": b"{}"}, about)) as writer:
        for name, tensor in reversed((tensors() | (changed or {})).items()):
            writer.add(name, tensor, 0.25 if tensor.row_scales is not None else 0.0)
    return path


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return write(tmp_path / "packed")


def specs(**shapes: tuple[int, ...]) -> dict[str, TensorSpec]:
    return {f"{name}.weight": TensorSpec(f"{name}.weight", shape, "linear") for name, shape in shapes.items()}


def test_what_is_written_is_read(packed: Path) -> None:
    model = PackedModel(packed)
    assert model.names == tuple(SHAPES)
    for name, expected in tensors().items():
        found = model.tensor(name)
        assert (found.kind, found.shape) == SHAPES[name]
        assert found.data.dtype == expected.data.dtype
        np.testing.assert_array_equal(found.data, expected.data)
        assert found.data.ctypes.data % 64 == 0
        assert not found.data.flags.writeable
        if expected.row_scales is None:
            assert found.row_scales is None
        else:
            assert found.row_scales is not None
            np.testing.assert_array_equal(found.row_scales, expected.row_scales)
    assert model.nbytes == sum(tensor.nbytes for tensor in tensors().values())
    assert model.config["model_type"] == "llama"
    assert model.manifest["source"] == {"identity": "f"}
    assert model.manifest["tensors"]["up.weight"]["relative_error"] == 0.25
    assert "relative_error" not in model.manifest["tensors"]["norm.weight"]
    assert model.files == {"tokenizer.json": packed / "tokenizer.json"}
    assert verify(packed) == list(SHAPES)


def test_the_official_library_reads_it(packed: Path) -> None:
    file = packed / WEIGHTS
    raw = file.read_bytes()
    file.write_bytes(raw.replace(b'"BF16"', b'"U16" '))  # which the library's numpy side does not know
    found = load_file(file)
    assert {name for name in found if not name.startswith("padding.")} == SHAPES.keys() | {
        "embed.row_scales",
        "up.row_scales",
        "gate.row_scales",
    }
    for name, expected in tensors().items():
        np.testing.assert_array_equal(found[name], expected.data)
        if expected.row_scales is not None:
            np.testing.assert_array_equal(found[name.replace("weight", "row_scales")], expected.row_scales)


def test_config_says_kind_and_shape(packed: Path) -> None:
    section = json.loads((packed / CONFIG).read_text())["quantization"]
    assert section["quant_method"] == "quantkit"
    assert section["format_version"] == 1
    assert section["tensors"]["embed.weight"] == {"kind": "int8", "shape": [19, 40]}


def test_a_tensor_that_is_not_there(packed: Path) -> None:
    with pytest.raises(PackedModelError, match=r"has no tensor 'nope'"):
        PackedModel(packed).tensor("nope")


def test_check_compares_with_a_program(packed: Path) -> None:
    model = PackedModel(packed)
    assert "brain.weight" in model.check(specs(gate=(3, 5), norm=(5,)))
    with pytest.raises(PackedModelError, match=r"has no tensor 'down\.weight'.*\(3, 4\)"):
        model.check(specs(up=(24, 64), down=(3, 4)))
    with pytest.raises(PackedModelError, match=r"'up\.weight' has shape \(24, 64\).*\(64, 24\)"):
        model.check(specs(up=(64, 24)))


def test_what_is_packed(packed: Path, tmp_path: Path) -> None:
    assert is_packed(packed)
    assert is_packed(str(packed))
    assert not is_packed(tmp_path)
    assert not is_packed(tmp_path / "nowhere")
    assert not is_packed(packed / CONFIG)
    with pytest.raises(PackedModelError, match="no such folder"):
        PackedModel(tmp_path / "nowhere")
    with pytest.raises(PackedModelError, match=r"not a packed model.*quantkit\.json"):
        PackedModel(tmp_path)


def test_numba_is_not_loaded(packed: Path) -> None:
    code = f"import sys; from quantkit.formats.packed import verify; verify({str(packed)!r});"
    code += "print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- damage ---------------------------------------------------------------------------------------------------------


def test_every_flipped_byte_is_found(packed: Path) -> None:
    for name in (WEIGHTS, CONFIG, "tokenizer.json"):
        file = packed / name
        raw = file.read_bytes()
        for position in range(0, len(raw), 1 if len(raw) < 1000 else 7):
            file.write_bytes(raw[:position] + bytes([raw[position] ^ 1 << position % 8]) + raw[position + 1 :])
            with pytest.raises(PackedModelError):
                verify(packed)
        file.write_bytes(raw)
    verify(packed)


@pytest.mark.parametrize("part", ["up.weight", "up.row_scales", "norm.weight"])
def test_verify_names_the_tensor(packed: Path, part: str) -> None:
    file = packed / WEIGHTS
    raw = bytearray(file.read_bytes())
    size = int.from_bytes(raw[:8], "little")
    raw[8 + size + json.loads(raw[8 : 8 + size])[part]["data_offsets"][0]] ^= 1
    file.write_bytes(raw)
    PackedModel(packed)  # is quick, and sees structure alone
    with pytest.raises(PackedModelError, match=rf"model\.safetensors.*'{part.split('.')[0]}\.weight' differs"):
        verify(packed)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_row_scales_that_are_not_finite(tmp_path: Path, value: float) -> None:
    tensor = tensors()["up.weight"]
    assert tensor.row_scales is not None
    tensor.row_scales[1, 1, 3] = value
    with pytest.raises(PackedModelError, match=r"model\.safetensors.*row scales of 'up\.weight' are not finite"):
        PackedModel(write(tmp_path / "out", {"up.weight": tensor}))


def edit(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return apply


def edit_section(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], object]:
    return edit(CONFIG, lambda config: change(config["quantization"]))


def edit_up(**changes: Any) -> Callable[[Path], object]:
    return edit_section(lambda section: section["tensors"]["up.weight"].update(changes))


def edit_header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        raw = (folder / WEIGHTS).read_bytes()
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        text += b" " * (-(8 + len(text)) % 64)
        (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])

    return apply


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def put_a_folder_there(folder: Path) -> None:
    (folder / CONFIG).unlink()
    (folder / CONFIG).mkdir()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (rewrite(WEIGHTS, lambda raw: raw[:-1]), r"safetensors.*truncated"),
    "too long": (rewrite(WEIGHTS, lambda raw: raw + b"\0"), r"safetensors.*bytes after"),
    "empty weights": (rewrite(WEIGHTS, lambda raw: b""), "safetensors"),
    "header beyond the file": (rewrite(WEIGHTS, lambda raw: b"\xff" * 7 + b"\x00" + raw[8:]), "safetensors"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), r"safetensors.*no such file"),
    "no config": (lambda folder: (folder / CONFIG).unlink(), r"config\.json.*no such file"),
    "config is a folder": (put_a_folder_there, r"config\.json"),
    "config is no JSON": (rewrite(CONFIG, lambda raw: raw[:-3]), r"config\.json.*not JSON"),
    "config is a list": (rewrite(CONFIG, lambda raw: b"[]"), r"config\.json.*not a JSON object"),
    "config nests deeply": (rewrite(CONFIG, lambda raw: b"[" * 200_000), r"config\.json.*nested too deeply"),
    "manifest is no JSON": (rewrite(MANIFEST, lambda raw: b"\xff"), r"quantkit\.json.*not JSON"),
    "newer manifest": (edit(MANIFEST, lambda it: it.update(format_version=2)), r"quantkit\.json.*format version 2"),
    "manifest without version": (edit(MANIFEST, lambda it: it.pop("format_version")), r"quantkit\.json.*version None"),
    "version true": (edit(MANIFEST, lambda it: it.update(format_version=True)), r"quantkit\.json.*version True"),
    "manifest without files": (edit(MANIFEST, lambda it: it.pop("files")), r"quantkit\.json"),
    "file elsewhere": (edit(MANIFEST, lambda it: it["files"].update({"../x": ""})), r"quantkit\.json.*'\.\./x'"),
    "checksum is a number": (edit(MANIFEST, lambda it: it["tensors"]["up.weight"].update(sha256=1)), "'up.weight'"),
    "error is a word": (
        edit(MANIFEST, lambda it: it["tensors"]["up.weight"].update(relative_error="x")),
        "'up.weight'",
    ),
    "share of codes is a word": (
        edit(MANIFEST, lambda it: it["tensors"]["up.weight"].update(kept_codes="all")),
        "'up.weight'",
    ),
    "tensor not in the manifest": (edit(MANIFEST, lambda it: it["tensors"].pop("up.weight")), "'up.weight'"),
    "no section": (edit(CONFIG, lambda it: it.pop("quantization")), r"config\.json.*'quantization'"),
    "newer section": (edit_section(lambda it: it.update(format_version=2)), r"config\.json.*format version 2"),
    "section without tensors": (edit_section(lambda it: it.pop("tensors")), r"config\.json"),
    "tensor not in the section": (edit_section(lambda it: it["tensors"].pop("up.weight")), "'up.weight'"),
    "unknown kind": (edit_up(kind="int3"), r"config\.json.*'up\.weight'.*int3"),
    "another kind": (edit_up(kind="int8"), r"'up\.(weight|row_scales)'"),
    "another block count": (edit_up(shape=[25, 64]), r"'up\.(weight|row_scales)'"),
    "vector of blocks": (edit_up(shape=[64]), r"config\.json.*'up\.weight'.*impossible"),
    "negative shape": (edit_up(shape=[-24, -64]), r"config\.json.*'up\.weight'"),
    "boolean shape": (edit_up(shape=[True, 64]), r"config\.json.*'up\.weight'"),
    "huge shape": (edit_up(shape=[10**30, 10**30]), r"config\.json.*'up\.weight'"),
    "shape is a text": (edit_up(shape="24x64"), r"config\.json.*'up\.weight'"),
    "entry is a text": (edit_section(lambda it: it["tensors"].update({"up.weight": "int4"})), "'up.weight'"),
    "row scales missing": (edit_header(lambda it: it.update(x=it.pop("up.row_scales"))), r"safetensors.*'up\.row_sc"),
    "dtype of row scales": (edit_header(lambda it: it["up.row_scales"].update(dtype="I32")), r"'up\.row_scales'"),
    "shape of row scales": (edit_header(lambda it: it["up.row_scales"].update(shape=[6, 8])), r"'up\.row_scales'"),
    "stranger": (edit_header(lambda it: it.update(x=it.pop("padding.1"))), r"safetensors.*'x'"),
    "swapped offsets": (
        edit_header(lambda it: it["embed.weight"].update(data_offsets=it["up.weight"]["data_offsets"])),
        r"safetensors.*invalid offset for tensor",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_by_name(packed: Path, damage: str) -> None:
    spoil, message = DAMAGE[damage]
    spoil(packed)
    with pytest.raises(PackedModelError, match=message) as error:
        PackedModel(packed)
    assert str(packed) in str(error.value)


def use(folder: Path) -> None:
    """Read every byte that an opened model gives access to; may raise what is raised for a damaged model only."""
    with suppress(PackedModelError):
        verify(folder)
    with suppress(PackedModelError):
        model: PackedModel = PackedModel(folder)
        for name in model.names:
            tensor = model.tensor(name)
            assert tensor.kind in blocks.KINDS
            data_shape, scales_shape = blocks.expected_shapes(tensor.kind, tensor.shape)
            assert tensor.data.shape == data_shape
            assert (None if tensor.row_scales is None else tensor.row_scales.shape) == scales_shape
            tensor.data.tobytes()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner), max_leaves=4
)
FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


def restore(folder: Path, keep: dict[str, bytes]) -> None:
    for name, raw in keep.items():
        (folder / name).write_bytes(raw)


@given(st.data())
@FUZZ
def test_hostile_values_in_json(packed: Path, data: st.DataObject) -> None:
    keep = {name: (packed / name).read_bytes() for name in (CONFIG, MANIFEST)}
    name = data.draw(st.sampled_from([CONFIG, MANIFEST]))
    content = json.loads(keep[name])
    at = content
    while True:
        key = data.draw(st.sampled_from(list(at)))
        if not (isinstance(at[key], dict) and at[key]) or data.draw(st.integers(0, 4)) == 0:
            break
        at = at[key]
    if data.draw(st.booleans()):
        at[key] = data.draw(JSON)
    else:
        at[data.draw(st.text())] = at.pop(key)
    (packed / name).write_text(json.dumps(content))
    use(packed)
    restore(packed, keep)


@given(st.sampled_from([CONFIG, MANIFEST, WEIGHTS]), st.integers(0, 1 << 16), st.binary(max_size=12), st.integers(0, 9))
@FUZZ
def test_hostile_bytes(packed: Path, name: str, position: int, inserted: bytes, removed: int) -> None:
    raw = (packed / name).read_bytes()
    position %= len(raw)
    (packed / name).write_bytes(raw[:position] + inserted + raw[position + removed :])
    use(packed)
    restore(packed, {name: raw})
