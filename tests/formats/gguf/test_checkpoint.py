"""GGUF files: a tiny llama written by the gguf package comes back as the folder it was made of."""

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
from gguf import GGMLQuantizationType, GGUFValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import tiny
from quantkit import formats
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.formats.gguf.checkpoint import hugging_face_name, llama3_factors
from quantkit.models import registry
from tiny_gguf import ARRAY, CONFIG, F32, TEXT, U32, Changes, gguf_name, metadata, weights, write


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tiny.gguf"


def test_names() -> None:
    for name in tiny.shapes(tiny.config_of("llama", attention_bias=True)):
        assert hugging_face_name(gguf_name(name)) == name
    assert hugging_face_name("blk.12.attn_q.bias") == "model.layers.12.self_attn.q_proj.bias"
    assert hugging_face_name("blk.0.unheard_of.weight") == "model.layers.0.unheard_of.weight"
    for name in ("unheard_of.weight", "blk.x.attn_q.weight", "", "blk.0", "a\nb"):
        assert hugging_face_name(name) == name


@pytest.mark.parametrize(
    ("kind", "expected", "tolerance"),
    [("F32", "f32", 0), ("F16", "f16", 2**-11), ("BF16", "bf16", 2**-8), ("Q8_0", "f16", 2**-7), ("Q4_1", "f16", 0.1)],
)
def test_tensors(kind: str, expected: str, tolerance: float, file: Path) -> None:
    checkpoint = formats.open(write(file, kind=GGMLQuantizationType[kind]))
    assert sorted(checkpoint.names) == sorted(tiny.shapes(CONFIG))
    for name, values in weights().items():
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
    np.testing.assert_array_equal(checkpoint.tensor(name).data, expected)


def test_tensors_larger_than_a_chunk(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = formats.open(write(file, kind=GGMLQuantizationType.Q8_0))
    whole = {name: checkpoint.tensor(name).data for name in checkpoint.names}
    monkeypatch.setattr("quantkit.formats.gguf.checkpoint.CHUNK", 64 * 7)
    for name, expected in whole.items():
        np.testing.assert_array_equal(checkpoint.tensor(name).data, expected)


def test_biases_are_reordered_too(file: Path) -> None:
    values = weights(attention_bias=True)
    checkpoint = formats.open(write(file, tensors=values))
    assert checkpoint.config["attention_bias"] is True
    for name in ("q_proj", "k_proj", "v_proj"):
        name = f"model.layers.0.self_attn.{name}.bias"
        np.testing.assert_array_equal(checkpoint.tensor(name).data, values[name])


def test_config(file: Path) -> None:
    config = formats.open(write(file)).config
    for field in CONFIG:
        expected = CONFIG[field]
        assert config[field] == (pytest.approx(expected) if isinstance(expected, float) else expected), field
    assert config["head_dim"] == 16
    untied = formats.open(write(file, tensors=weights(tie_word_embeddings=False)))
    assert untied.config["tie_word_embeddings"] is False
    assert untied.tensor("lm_head.weight").shape == (tiny.VOCAB_SIZE, 64)


def test_rope_scaling(file: Path) -> None:
    linear = {"llama.rope.scaling.type": ("linear", TEXT), "llama.rope.scaling.factor": (4.0, F32)}
    assert formats.open(write(file, linear)).config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    with pytest.raises(UnsupportedError, match="rope scaling 'yarn'"):
        formats.open(write(file, linear | {"llama.rope.scaling.type": ("yarn", TEXT)}))


# Of Llama 3.2 1B (theta 500000, head size 64), computed by transformers: base frequency / scaled frequency.
LLAMA32_FACTORS = {0: 1.0, 14: 1.0, 15: 1.6513, 16: 3.2923, 17: 9.6667, 18: 32.0, 31: 32.0}


def test_llama3_factors() -> None:
    factors = llama3_factors(500000.0, 64, 32.0)
    assert factors.shape == (32,)
    for index, expected in LLAMA32_FACTORS.items():
        assert factors[index] == pytest.approx(expected, abs=2e-4), index


def test_llama3_rope_is_recognized(file: Path) -> None:
    theta = {"llama.rope.freq_base": (500000.0, F32)}
    factors = llama3_factors(500000.0, 16, 8.0).astype(np.float32)
    checkpoint = formats.open(write(file, theta, weights() | {"rope_freqs.weight": factors}))
    assert checkpoint.config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert "rope_freqs.weight" not in checkpoint.names
    ones = np.ones(8, np.float32)
    assert formats.open(write(file, theta, weights() | {"rope_freqs.weight": ones})).config["rope_scaling"] is None
    factors[3] *= 1.1
    with pytest.raises(UnsupportedError, match="not those of Llama 3"):
        formats.open(write(file, theta, weights() | {"rope_freqs.weight": factors}))


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


def test_biases_of_queries_keys_and_values_alone(file: Path) -> None:
    """Qwen's weights under Llama's name, as llama.cpp loads them."""
    values = {name: array for name, array in weights(attention_bias=True).items() if not name.endswith("o_proj.bias")}
    source = formats.open(write(file, tensors=values))
    selection = source.select(registry.read(source.config).record().tensors)
    assert not selection.tensor("model.layers.0.self_attn.o_proj.bias").data.any()
    name = "model.layers.0.self_attn.q_proj.bias"
    np.testing.assert_array_equal(selection.tensor(name).data, values[name])


def test_a_weight_of_a_layer_that_llama_does_not_have(file: Path) -> None:
    source = formats.open(write(file, tensors=weights() | {"blk.0.attn_q_norm.weight": np.ones(16, np.float32)}))
    with pytest.raises(CheckpointError, match=r"does not use tensor 'model\.layers\.0\.attn_q_norm\.weight'"):
        source.select(registry.read(source.config).record().tensors)


def test_unknown_tensors_are_reported_not_read(file: Path) -> None:
    checkpoint = formats.open(write(file, tensors=weights() | {"strange": np.zeros((2, 32), np.float32)}))
    assert "strange" in checkpoint.names


REFUSED: dict[str, tuple[Changes, type[Exception], str]] = {
    "WordPiece": ({"tokenizer.ggml.model": ("bert", TEXT)}, UnsupportedError, "tokenizer is of kind 'bert'"),
    "pre-tokenizer": ({"tokenizer.ggml.pre": ("none", TEXT)}, UnsupportedError, "pre-tokenizer is 'none'; known"),
    "part of several": ({"split.count": (3, GGUFValueType.UINT16)}, UnsupportedError, "one part of several"),
    "experts": ({"llama.expert_count": (8, U32)}, UnsupportedError, "mixture of experts"),
    "partial rotary": ({"llama.rope.dimension_count": (8, U32)}, UnsupportedError, "rope.dimension_count differs"),
    "no heads": ({"llama.attention.head_count": (0, U32)}, CheckpointError, "gives 0 heads"),
    "missing key": ({"llama.block_count": None}, CheckpointError, "has no llama.block_count"),
    "wrong type": ({"llama.block_count": ("two", TEXT)}, CheckpointError, "llama.block_count is not of type int"),
    "alignment": ({"general.alignment": (48, U32)}, CheckpointError, "not a power of two"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str, file: Path) -> None:
    changes, error, message = REFUSED[name]
    write(file, changes)
    with pytest.raises(error, match=message) as caught:
        formats.open(file)
    assert str(file) in str(caught.value)


def test_refuses_other_architectures(file: Path) -> None:
    with pytest.raises(UnsupportedError, match="architecture 'qwen2'"):
        formats.open(write(file, architecture="qwen2"))


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
        formats.open(file).spec("model.embed_tokens.weight")


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


def test_values_beyond_f16(file: Path) -> None:
    values = weights()
    name = "model.layers.0.mlp.up_proj.weight"
    values[name] = values[name] * 0 + 60000
    checkpoint = formats.open(write(file, tensors=values, kind=GGMLQuantizationType.Q8_0))
    assert np.isfinite(checkpoint.tensor(name).data).all()
    values[name] *= 100
    checkpoint = formats.open(write(file, tensors=values, kind=GGMLQuantizationType.Q8_0))
    with pytest.raises(CheckpointError, match=r"up_proj\.weight' has values beyond f16"):
        checkpoint.tensor(name)


def test_without_the_gguf_package(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(file)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'quantkit\[gguf\]'"):
        formats.open(file)


def use_everything(path: Path) -> None:
    """Open the file and ask for all there is; only quantkit's own errors may come out."""
    with suppress(CheckpointError, UnsupportedError):
        checkpoint = formats.open(path)
        json.dumps(checkpoint.config)
        checkpoint.identity()
        for name in checkpoint.names:
            with suppress(CheckpointError, UnsupportedError):
                checkpoint.tensor(name)
        Tokenizer.from_str(bytes(checkpoint.files["tokenizer.json"]).decode())


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

    checkpoint = formats.open(write(file, kind=GGMLQuantizationType.Q4_0))
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    theirs = {name: values.float().numpy() for name, values in model.state_dict().items()}
    for name in checkpoint.names:
        np.testing.assert_allclose(
            checkpoint.tensor(name).data.astype(np.float32), theirs[name], rtol=2**-11, atol=1e-7
        )
