"""GGUF files: the tensors of a tiny llama that the gguf package wrote come back; damaged files are refused."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer

import tiny
from quantkit import formats
from quantkit.engine.binding import bind
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.formats.gguf.scales import TYPES, group_scales
from quantkit.quantization.conversion import convert
from tiny_gguf import (
    ARRAY,
    CONFIG,
    F32,
    TEXT,
    U16,
    U32,
    Changes,
    gguf_name,
    metadata,
    permuted,
    tokenizer_metadata,
    weights,
    write,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tiny.gguf"


@pytest.mark.parametrize(
    ("changes", "architecture", "message"),
    [
        ({"general.type": ("adapter", TEXT)}, "llama", "is an adapter for another model"),
        ({"general.type": ("mmproj", TEXT)}, "clip", r"sees or hears \(mmproj\); name the file with its text model"),
        ({}, "clip", r"sees or hears \(mmproj\)"),
        ({"general.type": ("imatrix", TEXT)}, "llama", "is an importance file, no model"),
    ],
)
def test_what_is_no_model_is_called_what_it_is(changes: Changes, architecture: str, message: str, file: Path) -> None:
    without_tokenizer = {key: None for key in metadata() if key.startswith("tokenizer.")}
    write(file, {**without_tokenizer, **changes}, architecture=architecture)
    with pytest.raises(UnsupportedError, match=message):
        formats.open(file)


@pytest.mark.parametrize(
    ("kind", "expected", "tolerance"),
    [("F32", "f32", 0), ("F16", "f16", 2**-11), ("BF16", "bf16", 2**-8), ("Q8_0", "f16", 2**-7), ("Q4_1", "f16", 0.1)],
)
def test_tensors(kind: str, expected: str, tolerance: float, file: Path) -> None:
    checkpoint = formats.open(write(file, kind=GGMLQuantizationType[kind]))
    assert sorted(checkpoint.names) == sorted(map(gguf_name, tiny.shapes(CONFIG)))
    for original, values in weights().items():
        name, values = gguf_name(original), permuted(original, values)
        tensor = checkpoint.tensor(name)
        assert tensor.kind == checkpoint.spec(name).kind == (expected if values.ndim == 2 else "f32")
        assert tensor.shape == tensor.data.shape == checkpoint.spec(name).shape == values.shape
        got = tensor.data.astype(np.float32)
        if tensor.kind == "bf16":
            got = (tensor.data.astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_allclose(got, values, rtol=0, atol=tolerance * np.abs(values).max())
        for copy in (False, True):
            np.testing.assert_array_equal(checkpoint.entries(name, slice(7, 40), copy=copy), tensor.data[7:40])


def test_dequantized_values_are_the_gguf_package_s(file: Path) -> None:
    checkpoint = formats.open(write(file, kind=GGMLQuantizationType.Q5_0))
    name = "model.layers.1.mlp.down_proj.weight"
    stored = gguf.quantize(weights()[name], GGMLQuantizationType.Q5_0)
    expected = gguf.dequantize(stored, GGMLQuantizationType.Q5_0).astype(np.float16)
    np.testing.assert_array_equal(checkpoint.tensor(gguf_name(name)).data, expected)


def test_tensors_larger_than_a_chunk(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = formats.open(write(file, kind=GGMLQuantizationType.Q8_0))
    whole = {name: checkpoint.tensor(name).data for name in checkpoint.names}
    monkeypatch.setattr("quantkit.formats.gguf.checkpoint.CHUNK", 64 * 7)
    for name, expected in whole.items():
        np.testing.assert_array_equal(checkpoint.tensor(name).data, expected)


def test_files(file: Path) -> None:
    files = formats.open(write(file, {"tokenizer.ggml.eot_token_id": (2, U32)})).files
    assert files["chat_template.jinja"] == b"{{ messages }}"
    # Declared are 1 and 2; token 3 is <|im_end|>, which ends a turn in any file.
    assert json.loads(bytes(files["generation_config.json"])) == {"bos_token_id": 0, "eos_token_id": [1, 2, 3]}
    config = json.loads(bytes(files["tokenizer_config.json"]))
    assert (config["bos_token"], config["eos_token"]) == ("<|begin_of_text|>", "<|end_of_text|>")


def test_identity(file: Path) -> None:
    write(file)
    first = formats.open(file).identity()
    assert formats.open(file).identity() == first
    content, before = file.read_bytes(), file.stat()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert formats.open(file).identity() != first


def test_unknown_tensors_are_reported_not_read(file: Path) -> None:
    checkpoint = formats.open(write(file, tensors=weights() | {"strange": np.zeros((2, 32), np.float32)}))
    assert "strange" in checkpoint.names


REFUSED: dict[str, tuple[Changes, type[Exception], str]] = {
    "WordPiece": ({"tokenizer.ggml.model": ("bert", TEXT)}, UnsupportedError, "tokenizer is of kind 'bert'"),
    "pre-tokenizer": ({"tokenizer.ggml.pre": ("none", TEXT)}, UnsupportedError, "pre-tokenizer is 'none'; known"),
    "part of several": ({"split.count": (3, U16)}, CheckpointError, "is one part of 3; part 2 is not beside it"),
    "alignment": ({"general.alignment": (48, U32)}, CheckpointError, "not a power of two"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str, file: Path) -> None:
    changes, error, message = REFUSED[name]
    write(file, changes)
    with pytest.raises(error, match=message) as caught:
        formats.open(file)
    assert str(file) in str(caught.value)


def test_refuses_types_that_gguf_cannot_dequantize(file: Path) -> None:
    write(file)
    content = file.read_bytes()
    # The type follows name, rank and the two dimensions of the embedding.
    place = content.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 2 * 8
    for code, error, message in (
        (GGMLQuantizationType.F64, CheckpointError, "is truncated|overlaps"),
        (77, UnsupportedError, "type 77"),
    ):
        file.write_bytes(content[:place] + int(code).to_bytes(4, "little") + content[place + 4 :])
        with pytest.raises(error, match=message):
            formats.open(file)
    file.write_bytes(content[:place] + int(GGMLQuantizationType.I32).to_bytes(4, "little") + content[place + 4 :])
    with pytest.raises(UnsupportedError, match="has type I32"):
        formats.open(file).spec("token_embd.weight")


LIST = b"tokenizer.ggml.tokens" + struct.pack("<IIQ", 9, 8, tiny.VOCAB_SIZE)
DAMAGED: dict[str, tuple[Callable[[bytes], bytes], type[Exception], str]] = {
    "empty": (lambda b: b"", CheckpointError, "is empty"),
    "other magic": (lambda b: b"GGML" + b[4:], CheckpointError, "of no format that quantkit knows"),
    "older magic": (lambda b: b"tjgg" + b[4:], CheckpointError, "from before GGUF"),
    "version 1": (lambda b: b[:4] + b"\1\0\0\0" + b[8:], UnsupportedError, "GGUF version 1"),
    "big-endian": (lambda b: b[:4] + b"\0\0\0\3" + b[8:], UnsupportedError, "little-endian"),
    "cut in the header": (lambda b: b[:1000], CheckpointError, "header does not end within the file"),
    "endless metadata": (lambda b: b[:16] + b"\xff" * 8 + b[24:], CheckpointError, "announces 18446744073709551615"),
    "endless tensors": (lambda b: b[:8] + b"\xff" * 8 + b[16:], CheckpointError, "announces 18446744073709551615"),
    "too many tensors": (
        lambda b: b[:8] + (2000).to_bytes(8, "little") + b[16:],
        CheckpointError,
        "damaged|dimensions",
    ),
    "an endless list": (
        lambda b: b.replace(LIST, LIST[:-8] + (2**21).to_bytes(8, "little")) + bytes(2**24),
        CheckpointError,
        "announces 2097152 values in a row",
    ),
    "cut in the data": (lambda b: b[:-100], CheckpointError, "is truncated: tensor"),
    "a key twice": (
        lambda b: b.replace(b"llama.context_length", b"llama.rope.freq_base"),
        CheckpointError,
        "metadata key 'llama.rope.freq_base' twice",
    ),
    "a tensor twice": (
        lambda b: b.replace(b"blk.0.ffn_up.weight", b"blk.1.ffn_up.weight"),
        CheckpointError,
        r"tensor 'blk.1.ffn_up.weight' twice",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_refuses_damaged(name: str, file: Path) -> None:
    damage, error, message = DAMAGED[name]
    file.write_bytes(damage(write(file).read_bytes()))
    with pytest.raises(error, match=message) as caught:
        formats.open(file)
    assert str(file) in str(caught.value)


def test_a_tensor_without_rows(file: Path) -> None:
    content = write(file, kind=GGMLQuantizationType.Q4_0).read_bytes()
    name = b"blk.0.ffn_gate.weight"
    place = content.index(name) + len(name) + 4 + 8  # its second dimension
    file.write_bytes(content[:place] + bytes(8) + content[place + 8 :])
    with pytest.raises(CheckpointError, match="impossible shape"):
        formats.open(file)


def test_overlapping_tensors(file: Path) -> None:
    content = write(file).read_bytes()
    name = b"blk.0.ffn_gate.weight"
    place = content.index(name) + len(name) + 4 + 2 * 8 + 4  # its offset
    file.write_bytes(content[:place] + bytes(8) + content[place + 8 :])
    with pytest.raises(CheckpointError, match="overlaps its neighbour"):
        formats.open(file)


def types_of_gguf() -> list[str]:
    """Types of blocks that the gguf package de-quantizes."""
    found = []
    for kind, (block, nbytes) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.dequantize(np.zeros((1, nbytes), np.uint8), kind)
        except NotImplementedError:
            continue
        if block > 1:
            found.append(kind.name)
    return found


@pytest.mark.parametrize("name", types_of_gguf())
def test_every_type_of_the_gguf_package(name: str, file: Path) -> None:
    """Random bytes, except that halves which are no number of moderate size become one."""
    kind = GGMLQuantizationType[name]
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    rows, blocks = 3, 2
    raw = np.random.default_rng(0).integers(0, 256, (rows, blocks * nbytes), np.uint8)
    raw = moderate(raw, kind, blocks)
    writer = gguf.GGUFWriter(file, "llama")
    for key, value in tokenizer_metadata().items():
        writer.add_key_value(key, *value)
    writer.add_tensor("some.weight", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = formats.open(file).tensor("some.weight")
    assert tensor.shape == (rows, blocks * block)
    expected = gguf.dequantize(raw, kind)
    if tensor.kind == "bf16":
        np.testing.assert_array_equal((tensor.data.astype(np.uint32) << 16).view(np.float32), expected)
    else:
        np.testing.assert_array_equal(tensor.data, expected.astype(np.float16))


@pytest.mark.parametrize("name", TYPES)
def test_numbers_are_whole_codes_of_their_scales(name: str, file: Path) -> None:
    kind = GGMLQuantizationType[name]
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 256, (6, 2 * nbytes), np.uint8)
    raw = moderate(raw, kind, 2)
    scales = group_scales(name, raw.reshape(-1, nbytes), (6, 2 * block))
    assert scales.scales.shape == scales.mins.shape == (6, 2 * block // 32)
    steps, mins = (np.repeat(each, 32, axis=1) for each in (scales.scales, scales.mins))
    numbers = gguf.dequantize(raw, kind)
    told = np.abs(steps) > 1e-3 * np.abs(mins)  # where a step is not lost beside the min
    codes = (numbers - mins)[told] / steps[told]
    assert told.mean() > 0.5
    np.testing.assert_allclose(codes, np.rint(codes), rtol=0, atol=1e-3)
    assert np.rint(codes).min() == 0
    assert np.rint(codes).max() < 1 << scales.bits
    np.testing.assert_allclose(np.rint(codes) * steps[told] + mins[told], numbers[told], rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "packed"),
    [
        ("Q4_0", "int4"),
        ("Q4_1", "int4"),
        ("Q5_0", "int5"),
        ("Q5_1", "int5"),
        ("Q5_0", "int8"),
        ("Q8_0", "int8"),
    ],
)
def test_packing_keeps_codes(kind: str, packed: str, file: Path, tmp_path: Path) -> None:
    report = convert(write(file, kind=GGMLQuantizationType[kind]), tmp_path / "kept", packed)
    plain = {name: gguf.quantize(values, GGMLQuantizationType[kind]) for name, values in weights().items()}
    decoded = {
        name: gguf.dequantize(plain[name], GGMLQuantizationType[kind]) if values.ndim == 2 else values
        for name, values in weights().items()
    }
    searched = convert(write(tmp_path / "plain.gguf", tensors=decoded), tmp_path / "searched", packed)
    assert searched.kept_codes == {}
    for name, found in (("kept", report), ("searched", searched)):
        assert found.files == {each.name: each.stat().st_size for each in (tmp_path / name).iterdir()}
    matrices = [name for name in report.kept_codes if name.endswith("_proj.weight")]
    assert len(matrices) == 14
    for name in matrices:
        assert report.kept_codes[name] == 1
        assert report.errors[name] < searched.errors[name]


def moderate(raw: NDArray[np.uint8], kind: GGMLQuantizationType, blocks: int) -> NDArray[np.uint8]:
    """Bytes of blocks whose values f16 holds: of each block, those that make others are set to a small number."""
    fixed = raw.reshape(len(raw) * blocks, -1).copy()
    for row in fixed:
        for place in range(len(row)):
            with np.errstate(all="ignore"):
                values = gguf.dequantize(row[np.newaxis], kind)
            if np.isfinite(values).all() and np.abs(values).max() < 60000:
                break
            row[place] = 0x20
    return fixed.reshape(raw.shape)


def split(folder: Path, count: int, name: str = "tiny-{:05}-of-{:05}.gguf") -> list[Path]:
    """Write the tiny llama as so many files, all metadata in the first."""
    tensors = list(weights().items())
    paths = []
    for number in range(count):
        place: Changes = {"split.no": (number, U16), "split.count": (count, U16)}
        path = folder / name.format(number + 1, count)
        nothing: Changes = dict.fromkeys(metadata()) if number else {}
        paths.append(write(path, {**nothing, **place}, dict(tensors[number::count])))
    return paths


@pytest.mark.parametrize("name", ["tiny-{:05}-of-{:05}.gguf", "blob-{}{}"])
def test_several_files(name: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("GGUF files")
    paths = split(tmp_path, 3, name)
    whole = formats.open(write(tmp_path / "whole.gguf"))
    for path in paths:
        source = formats.open(path)
        assert sorted(source.names) == sorted(whole.names)
        assert source.nbytes == whole.nbytes
        assert {source.file_of(tensor) for tensor in source.names} == set(paths)
        for tensor in whole.names:
            np.testing.assert_array_equal(source.tensor(tensor).data, whole.tensor(tensor).data)
    first = formats.open(paths[0]).identity()
    paths[1].write_bytes(paths[1].read_bytes())
    assert formats.open(paths[0]).identity() != first


def test_a_part_is_missing(tmp_path: Path) -> None:
    paths = split(tmp_path, 3)
    paths[1].unlink()
    with pytest.raises(CheckpointError, match="is one part of 3; part 2 is not beside it"):
        formats.open(paths[2])


def test_a_part_is_there_twice(tmp_path: Path) -> None:
    paths = split(tmp_path, 2, "blob-{}{}")
    (tmp_path / "copy").write_bytes(paths[1].read_bytes())
    with pytest.raises(CheckpointError, match="are both part 2"):
        formats.open(paths[0])


def test_a_damaged_part(tmp_path: Path) -> None:
    paths = split(tmp_path, 2)
    paths[1].write_bytes(paths[1].read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"00002-of-00002\.gguf: is truncated"):
        formats.open(paths[0])


def test_parts_with_the_same_tensor(tmp_path: Path) -> None:
    for number in range(2):
        place: Changes = {"split.no": (number, U16), "split.count": (2, U16)}
        write(tmp_path / f"tiny-{number + 1:05}-of-00002.gguf", place)
    with pytest.raises(CheckpointError, match=r"has tensor '.*', as has"):
        formats.open(tmp_path / "tiny-00001-of-00002.gguf")


def test_values_beyond_f16(file: Path) -> None:
    values = weights()
    name = "model.layers.0.mlp.up_proj.weight"
    values[name] = values[name] * 0 + 60000
    checkpoint = formats.open(write(file, tensors=values, kind=GGMLQuantizationType.Q8_0))
    assert np.isfinite(checkpoint.tensor(gguf_name(name)).data).all()
    values[name] *= 100
    checkpoint = formats.open(write(file, tensors=values, kind=GGMLQuantizationType.Q8_0))
    with pytest.raises(CheckpointError, match=r"ffn_up\.weight' has values beyond f16"):
        checkpoint.tensor(gguf_name(name))


def test_without_the_gguf_package(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(file)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'quantkit\[gguf\]'"):
        formats.open(file)


def use_everything(path: Path) -> None:
    """Open the file and ask for all there is; only quantkit's own errors may come out."""
    with suppress(CheckpointError, UnsupportedError):
        checkpoint = formats.open(path)
        checkpoint.identity()
        for name in checkpoint.names:
            with suppress(CheckpointError, UnsupportedError):
                checkpoint.tensor(name)
        Tokenizer.from_str(bytes(checkpoint.files["tokenizer.json"]).decode())
        json.dumps(bind(checkpoint).architecture.source)


fuzz = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("gguf") / "sound.gguf", kind=GGMLQuantizationType.Q4_0).read_bytes()


@fuzz
@given(edits=st.lists(st.tuples(st.integers(0, 2**20), st.binary(min_size=1, max_size=8)), min_size=1, max_size=3))
def test_damaged_headers(edits: list[tuple[int, bytes]], sound: bytes, tmp_path: Path) -> None:
    header = sound.index(b"blk.1.ffn_down.weight") + 100
    content = bytearray(sound)
    for place, value in edits:
        place %= header
        content[place : place + len(value)] = value
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    use_everything(path)


@fuzz
@given(cut=st.integers(0, 2**20), tail=st.binary(max_size=40))
def test_cut_files(cut: int, tail: bytes, sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(sound[: cut % len(sound)] + tail)
    use_everything(path)


values = (
    st.tuples(st.integers(0, 2**32 - 1) | st.integers(0, 5), st.just(U32))
    | st.tuples(st.floats(width=32), st.just(F32))
    | st.tuples(st.text(max_size=5, alphabet=st.characters(codec="utf-8")), st.just(TEXT))
    | st.tuples(st.lists(st.integers(0, 5), min_size=1, max_size=3), st.just(ARRAY))
    | st.tuples(st.lists(st.sampled_from(["a", "b", "a b", ""]), min_size=1, max_size=3), st.just(ARRAY))
)


@fuzz
@given(data=st.data())
def test_any_metadata(data: st.DataObject, tmp_path: Path) -> None:
    keys = st.sampled_from([*metadata(), "llama.attention.key_length", "llama.rope.scale_linear"])
    use_everything(write(tmp_path / "x.gguf", data.draw(st.dictionaries(keys, values, min_size=1, max_size=2))))


@pytest.mark.live
def test_transformers_reads_the_same(file: Path) -> None:
    from transformers import AutoModelForCausalLM

    checkpoint = bind(formats.open(write(file, kind=GGMLQuantizationType.Q4_0))).weights
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    theirs = {name: values.float().numpy() for name, values in model.state_dict().items()}
    for name in checkpoint.names:
        np.testing.assert_allclose(
            checkpoint.tensor(name).data.astype(np.float32), theirs[name], rtol=2**-11, atol=1e-7
        )
