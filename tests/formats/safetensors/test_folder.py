"""Checkpoint folders: what a download holds is read as it is, and what cannot work is refused by name, at once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from quantkit import formats
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.program import Program
from quantkit.models.recorder import Recorder
from quantkit.models.registry import read
from quantkit.tensor import Tensor, TensorSpec
from scheme_writers import WRITERS

INDEX = "model.safetensors.index.json"


def edit(file: Path, **fields: Any) -> None:
    """Set fields of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def program_of(config: dict[str, Any]) -> Program:
    """A program that reads every tensor of a tiny config, and computes nonsense."""
    ops = Recorder()
    for name, shape in tiny.shapes(config).items():
        module, _, what = name.rpartition(".")
        if len(shape) == 1:
            ops.rms_norm(
                ops.embed("model.embed_tokens", config["vocab_size"], config["hidden_size"]),
                module,
                1e-5,
                size=shape[0],
            )
        elif what == "weight":
            ops.embed(module, *shape)
    ops.select(ops.embed("model.embed_tokens", config["vocab_size"], config["hidden_size"]))
    return ops.program()


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("shards", [1, 3])
def test_tensors(dtype: str, shards: int, tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path, dtype=dtype, shards=shards)
    checkpoint = formats.open(tmp_path)
    shapes = tiny.shapes(tiny.config_of())
    assert sorted(checkpoint.names) == sorted(shapes)
    assert checkpoint.config["hidden_size"] == 64
    assert checkpoint.nbytes == sum(int(np.prod(s)) for s in shapes.values()) * (4 if dtype == "F32" else 2)
    for name, shape in shapes.items():
        expected = tiny.encode_dtype(tiny.weight(name, shape), dtype)
        tensor = checkpoint.tensor(name)
        assert isinstance(tensor, Tensor)
        assert (tensor.kind, tensor.shape) == (dtype.lower(), shape)
        assert checkpoint.spec(name) == TensorSpec(name, shape, kind=dtype.lower())
        assert tensor.data.dtype == expected.dtype
        assert not tensor.data.flags.writeable
        np.testing.assert_array_equal(tensor.data, expected)


def test_names_are_in_order_of_bytes(tmp_path: Path) -> None:
    checkpoint = formats.open(tiny.checkpoint(tmp_path, shards=2))
    places = [(checkpoint.file_of(name).name, checkpoint.tensor(name).data.ctypes.data) for name in checkpoint.names]
    assert places == sorted(places)


def test_files(tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path)
    (tmp_path / "README.md").write_text("not ours")
    files = formats.open(tmp_path).files
    assert set(files) == {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"}
    assert files["tokenizer.json"] == tmp_path / "tokenizer.json"


def test_check_reports_extra_tensors(tmp_path: Path) -> None:
    config = tiny.config_of(tie_word_embeddings=True)
    tiny.checkpoint(tmp_path, tie_word_embeddings=False)
    assert formats.open(tmp_path).check(program_of(config).tensors) == ["lm_head.weight"]
    tiny.checkpoint(tmp_path, tie_word_embeddings=True)
    assert formats.open(tmp_path).check(program_of(config).tensors) == []


def test_check_names_a_missing_tensor(tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path, num_hidden_layers=1)
    with pytest.raises(CheckpointError, match=r"has no tensor 'model\.layers\.1\..*'.*\(64, 64\)"):
        formats.open(tmp_path).check(program_of(tiny.config_of()).tensors)


def test_check_names_a_wrong_shape(tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path, shards=2)
    with pytest.raises(
        CheckpointError, match=r"0000\d-of-00002.safetensors: tensor .* has shape \(160, 64\), .* \(96, 64\)"
    ):
        formats.open(tmp_path).check(program_of(tiny.config_of(intermediate_size=96)).tensors)


def test_check_names_a_wrong_dtype(tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path)
    shapes = tiny.shapes(tiny.config_of())
    tensors = {name: ("I8", np.zeros(shape, np.int8)) for name, shape in shapes.items()}
    tiny.write_safetensors(tmp_path / "model.safetensors", tensors)
    checkpoint = formats.open(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: tensor .* has dtype I8; quantkit reads F32, F16, BF16"
    ):
        checkpoint.check(program_of(tiny.config_of()).tensors)
    with pytest.raises(CheckpointError, match="I8"):
        checkpoint.tensor("model.norm.weight")


def test_a_strange_dtype_matters_where_it_is_needed(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path)
    shapes = tiny.shapes(tiny.config_of())
    tensors = {name: ("BF16", np.zeros(shape, np.uint16)) for name, shape in shapes.items()}
    tensors["scores.weight"] = ("F8_E4M3FNUZ", np.zeros((3, 5), np.uint8))
    tiny.write_safetensors(folder / "model.safetensors", tensors)
    source = formats.open(folder)
    assert source.check(program_of(tiny.config_of()).tensors) == ["scores.weight"]
    with pytest.raises(CheckpointError, match=r"'scores\.weight' has dtype F8_E4M3FNUZ"):
        source.tensor("scores.weight")


def test_unknown_name(tmp_path: Path) -> None:
    checkpoint = formats.open(tiny.checkpoint(tmp_path))
    for method in (checkpoint.tensor, checkpoint.spec, checkpoint.file_of):
        with pytest.raises(CheckpointError, match="has no tensor 'nothing'"):
            method("nothing")


def test_identity_changes_with_every_file(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, shards=2)
    found = [formats.open(folder).identity()]
    assert formats.open(folder).identity() == found[0]
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "model-00002-of-00002.safetensors"):
        change_a_byte(folder / name)
        found.append(formats.open(folder).identity())
    assert len(set(found)) == len(found)


def change_a_byte(file: Path) -> None:
    """Change a byte in place, and neither size nor date; text stays what it was to a reader of JSON."""
    content, before = bytearray(file.read_bytes()), file.stat()
    weights = file.suffix == ".safetensors"
    place = len(content) - 1 if weights else content.index(b" ")
    content[place] = content[place] ^ 1 if weights else ord("\t")
    with file.open("r+b") as stream:
        stream.write(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_mtime_ns, file.stat().st_size) == (before.st_mtime_ns, before.st_size)


def remove_weights(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()


def pickles(folder: Path) -> None:
    remove_weights(folder)
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(b"\x80\x04.")


def truncated(folder: Path) -> None:
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])


def lfs_pointer(folder: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
    (folder / "model-00001-of-00002.safetensors").write_text(text)


def remove_shards(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.unlink()


def lose_shard_and_index(folder: Path) -> None:
    (folder / INDEX).unlink()
    (folder / "model-00002-of-00002.safetensors").unlink()


def escaping_index(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"w": "../model.safetensors"}}))


def rename_config(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").rename(folder / name)


REFUSED: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), CheckpointError, r"config\.json: no such file"),
    "diffusers": (
        lambda f: rename_config(f, "model_index.json"),
        UnsupportedError,
        r"is a diffusion pipeline \(model_index\.json\)",
    ),
    "an adapter": (
        lambda f: rename_config(f, "adapter_config.json"),
        UnsupportedError,
        r"is an adapter \(adapter_config\.json\) for another model",
    ),
    "GGUF files": (lambda f: rename_config(f, "b.gguf"), CheckpointError, r"holds GGUF files; .* such as b\.gguf"),
    "a cache of the hub": (
        lambda f: rename_config(f, "snapshots/0123/config.json"),
        CheckpointError,
        "is a cache of the hub; name the model in it, .*/snapshots/0123",
    ),
    "the makers' own format": (
        lambda f: rename_config(f, "consolidated.00.pth"),
        UnsupportedError,
        r"its maker's own format \(consolidated\.00\.pth\), .* use the Hugging Face version",
    ),
    "the folder above": (
        lambda f: rename_config(f, "inner/config.json"),
        CheckpointError,
        r"has no config\.json; is it .*/inner that you mean\?",
    ),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), CheckpointError, r"config\.json: is not JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), CheckpointError, "not a JSON object"),
    "no model_type": (lambda f: edit(f / "config.json", model_type=None), CheckpointError, "has no model_type"),
    "pickles": (pickles, UnsupportedError, r"pickles \(pytorch_model-00001-of-00002\.bin\)"),
    "no weights": (remove_weights, CheckpointError, r"neither model\.safetensors nor"),
    "index without map": (lambda f: (f / INDEX).write_text("{}"), CheckpointError, "has no weight_map"),
    "escaping index": (escaping_index, CheckpointError, r"none of the files that model\.safetensors\.index\.json"),
    "no shards": (remove_shards, CheckpointError, r"none of the files that model\.safetensors\.index\.json names"),
    "a shard too few, no index": (lose_shard_and_index, CheckpointError, "is not all: finish the download"),
    "truncated shard": (truncated, CheckpointError, r"model-00002-of-00002\.safetensors: is truncated"),
    "LFS pointer": (lfs_pointer, CheckpointError, "git lfs pull"),
    "quark": (
        lambda f: edit(f / "config.json", quantization_config={"quant_method": "quark"}),
        UnsupportedError,
        r"already quantized \(quantization_config: 'quark'\)",
    ),
    "packed, without its manifest": (
        lambda f: edit(f / "config.json", quantization={"quant_method": "quantkit"}),
        UnsupportedError,
        r"packed by quantkit, and its quantkit\.json is missing",
    ),
    "no name": (
        lambda f: edit(f / "config.json", quantization_config={"bits": 8}),
        UnsupportedError,
        r"already quantized \(quantization_config: method not named\)",
    ),
    "mlx": (
        lambda f: edit(f / "config.json", quantization={"bits": 4, "group_size": 32, "mode": "int2"}),
        UnsupportedError,
        r"config\.json: quantization: groups of 32 and mode 'int2' are not supported",
    ),
}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", INDEX, "tokenizer.json", "chat_template.jinja"])
def test_a_link_to_a_missing_file_is_not_passed_over(name: str, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, shards=2 if name == INDEX else 1)
    (folder / name).unlink()
    (folder / name).symlink_to("../blobs/0123")
    with pytest.raises(CheckpointError, match=rf"{name}: is a link to \.\./blobs/0123, which is missing"):
        assert formats.open(folder).files


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str, tmp_path: Path) -> None:
    damage, error, message = REFUSED[name]
    damage(tiny.checkpoint(tmp_path, shards=2))
    with pytest.raises(error, match=message) as caught:
        formats.open(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_shards_need_no_index(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, shards=3)
    (folder / INDEX).unlink()
    assert formats.open(folder).check(program_of(tiny.config_of()).tensors) == []


def test_the_index_may_name_what_is_not_needed(tmp_path: Path) -> None:
    """Left-overs that no shard holds, and whole shards of them, as after a part of a model was cut off."""
    folder = tiny.checkpoint(tmp_path, shards=2)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.layers.0.self_attn.rotary_emb.inv_freq"] = "model-00001-of-00002.safetensors"
    index["weight_map"]["vision.weight"] = "model-00003-of-00003.safetensors"
    index["weight_map"] |= {"x.weight": "text/../../model.safetensors", "y.weight": 1, "z.weight": ["a"]}
    (folder / INDEX).write_text(json.dumps(index))
    assert formats.open(folder).check(program_of(tiny.config_of()).tensors) == []


def test_a_missing_shard_is_named_when_it_is_needed(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"model-00002-of-00002\.safetensors: is missing, with tensor '.*\.weight'"
    ):
        formats.open(folder).check(program_of(tiny.config_of()).tensors)


def test_a_path_out_of_the_folder_is_never_followed(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "inside", shards=2)
    index = json.loads((folder / INDEX).read_text())
    shard = index["weight_map"]["model.norm.weight"]
    index["weight_map"]["model.norm.weight"] = f"../{shard}"
    (folder / shard).rename(tmp_path / shard)
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=rf"index\.json: '\.\./{shard}' is not the name of a file in this folder"):
        formats.open(folder).tensor("model.norm.weight")


def test_weights_are_known_by_content(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path)
    for before, after in (("model.safetensors", "weights"), ("weights", "pytorch_model.bin")):
        (folder / before).rename(folder / after)
        assert formats.open(folder).check(program_of(tiny.config_of()).tensors) == []


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", INDEX])
def test_pipes_and_devices_are_never_opened(name: str, tmp_path: Path) -> None:
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        folder = tiny.checkpoint(tmp_path / make.__name__)
        if name == INDEX:
            (folder / "model.safetensors").unlink()
        (folder / name).unlink(missing_ok=True)
        make(folder / name)
        with pytest.raises(CheckpointError, match=f"{name}: is not a regular file"):
            formats.open(folder).identity()
    with pytest.raises(CheckpointError, match="zero: is not a regular file"):
        formats.open("/dev/zero")


def test_null_quantization_config_is_none(tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path, quantization_config=None)
    assert formats.open(tmp_path).names


def test_one_file_wins_over_shards(tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path, shards=2)
    tiny.checkpoint(tmp_path, seed=5)
    checkpoint = formats.open(tmp_path)
    assert checkpoint.file_of("model.norm.weight").name == "model.safetensors"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    config=st.dictionaries(st.sampled_from(["model_type", "quantization_config", "x"]), json_values) | json_values,
    index=st.fixed_dictionaries({"weight_map": st.dictionaries(st.text(max_size=3), json_values)}) | json_values,
)
def test_any_json(config: Any, index: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises((CheckpointError, UnsupportedError)) as caught:
        formats.open(tmp_path)
    str(caught.value).encode()  # printable, whatever the file holds


def test_the_text_part_may_be_quantized_by_its_own_config(tmp_path: Path) -> None:
    encode, said, field = WRITERS["awq"]
    parts, numbers = encode("x", np.random.default_rng(0).standard_normal((32, 64), np.float32))
    config = {"model_type": "llava", "text_config": {"model_type": "llama", field: said}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tiny.write_safetensors(tmp_path / "model.safetensors", {f"x{end}": part for end, part in parts.items()})
    source = formats.open(tmp_path)
    np.testing.assert_array_equal(source.tensor("x.weight").data, numbers)
    assert source.config == {"model_type": "llava", "text_config": {"model_type": "llama"}}


@pytest.mark.real
def test_the_real_checkpoint() -> None:
    checkpoint = formats.open(os.environ["QUANTKIT_TEST_MODEL"])
    assert checkpoint.check(read(checkpoint.config).record().tensors) == []
    assert {checkpoint.spec(name).kind for name in checkpoint.names} == {"f16"}
    assert {"tokenizer.json", "chat_template.jinja"} <= set(checkpoint.files)
