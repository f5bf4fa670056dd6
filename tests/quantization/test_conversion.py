"""From a checkpoint to a packed folder: what comes out, what is refused before work, what stays behind."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tiny
from golden import generate as golden
from quantkit import formats
from quantkit.engine.binding import bind
from quantkit.errors import (
    CheckpointError,
    OptionError,
    PackedModelError,
    QuantkitError,
    StrictError,
    UnsupportedError,
)
from quantkit.formats.packed import PackedModel, verify
from quantkit.formats.safetensors.file import SafetensorsFile
from quantkit.models.registry import read
from quantkit.quantization.calibration import inputs
from quantkit.quantization.conversion import convert, convert_all
from quantkit.quantization.encode import encode
from quantkit.quantization.report import Progress
from quantkit.tensor import Piece
from quantkit_kernels import blocks

LARGEST_ERROR = {"int4": 1.2e-2, "int5": 4e-3, "int6": 1.1e-3, "int8": 6e-5, "f16": 1e-7, "bf16": 1e-5, "f32": 0.0}
LARGEST_MEMORY = 400e6
"""Bytes that a conversion may have in memory at once, compiled kernels and libraries included."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("source") / "tiny", shards=2)


def numbers(tensor: Any) -> Any:
    return blocks.dequantize(tensor.kind, tensor.data, tensor.row_scales, tensor.shape)


@pytest.mark.parametrize("case", [*tiny.FAMILIES, "llama_awkward_sizes"])
def test_every_family(tmp_path: Path, case: str) -> None:
    source = golden.checkpoint(tmp_path / "source", case, dtype="F16")
    dry = convert(source, tmp_path / "out", dry_run=True)
    report = convert(source, tmp_path / "out")
    assert dry.files == report.files == {file.name: file.stat().st_size for file in (tmp_path / "out").iterdir()}
    bound, after = bind(formats.open(source)), PackedModel(tmp_path / "out")
    before = bound.weights
    assert verify(tmp_path / "out") == list(after.names) == list(before.names)
    for name in before.names:
        wanted, found = numbers(before.tensor(name)), numbers(after.tensor(name))
        error = float(np.square(found - wanted).sum() / np.square(wanted).sum())
        assert error <= LARGEST_ERROR[after.specs[name].kind]
        assert report.errors[name] == pytest.approx(error, rel=1e-3)
        assert after.manifest["tensors"][name].get("relative_error", 0.0) == report.errors[name]
    positions = {"f16"} if bound.program.learned_positions else set()
    assert {after.specs[name].kind for name in after.names} - {"f32"} <= {"int4", "int5", "int6", "int8"} | positions
    int4 = convert(source, tmp_path / "int4", "int4", dry_run=True)
    assert {tensor.kind for tensor in int4.tensors} - {"f32"} == {"int4", "int8"} | positions
    assert report.packed_bytes <= int4.packed_bytes


def test_the_folder_is_the_checkpoint_with_other_weights(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "new" / "out", overrides=[("down_proj", "int8")])
    out = tmp_path / "new" / "out"
    sidecars = {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"}
    assert set(os.listdir(out)) == {"README.md", "config.json", "model.safetensors", "quantkit.json"} | sidecars
    for name in sidecars:
        assert (out / name).read_bytes() == (checkpoint / name).read_bytes()
    config, manifest = (json.loads((out / name).read_text()) for name in ("config.json", "quantkit.json"))
    section = config.pop("quantization")
    assert config == json.loads((checkpoint / "config.json").read_text())
    assert section["quant_method"] == "quantkit"
    assert section["tensors"]["model.layers.0.mlp.down_proj.weight"] == {"kind": "int8", "shape": [64, 160]}
    assert manifest["options"] == {"quantize": "mixed", "overrides": [["down_proj", "int8"]]}
    assert manifest["source"] == {"name": "tiny", "dtype": "bfloat16"}


def test_threads_change_no_byte(checkpoint: Path, tmp_path: Path) -> None:
    for threads in (1, 3):
        convert(checkpoint, tmp_path / str(threads), threads=threads)
    for file in (tmp_path / "1").iterdir():
        assert file.read_bytes() == (tmp_path / "3" / file.name).read_bytes()


def test_report_and_progress(checkpoint: Path, tmp_path: Path) -> None:
    steps: list[Progress] = []
    report = convert(checkpoint, tmp_path / "out", progress=steps.append)
    packed = PackedModel(tmp_path / "out")
    weights = sum(int(np.prod(spec.shape)) for spec in packed.specs.values())
    assert [step.tensor for step in steps] == list(packed.names)
    assert (steps[-1].done, steps[-1].total) == (weights, weights)
    assert [row.kind for row in report.kinds] == ["int6", "int5", "int4", "f32"]
    assert sum(row.tensors for row in report.kinds) == len(packed.names)
    assert report.source_bytes == 2 * weights
    assert report.packed_bytes == packed.nbytes == sum(packed.tensor(name).nbytes for name in packed.names)
    assert report.bits_per_weight == pytest.approx(8 * packed.nbytes / weights)
    assert 0 < report.seconds < 100
    assert report.peak_rss > 1e6
    assert report.disk_free > report.folder_bytes


def test_int8_and_any_kind_by_override(checkpoint: Path, tmp_path: Path) -> None:
    overrides = [("embed", "f16"), ("lm_head", "bf16"), (r"layers\.0\.", "f32")]
    report = convert(checkpoint, tmp_path / "out", "int8", overrides=overrides)
    packed = PackedModel(tmp_path / "out")
    kinds = {spec.kind for spec in packed.specs.values()}
    assert kinds == {"int8", "f16", "bf16", "f32"}
    assert all(report.errors[name] <= LARGEST_ERROR[spec.kind] for name, spec in packed.specs.items())
    verify(tmp_path / "out")


def test_a_dry_run_writes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    dry = convert(checkpoint, tmp_path / "out", dry_run=True)
    assert os.listdir(tmp_path) == []
    wet = convert(checkpoint, tmp_path / "out")
    assert (dry.files, dry.source_bytes, dry.errors) == (wet.files, wet.source_bytes, {})
    assert [(row.name, row.kind, row.reason) for row in dry.tensors] == [
        (row.name, row.kind, row.reason) for row in wet.tensors
    ]


@pytest.mark.real
def test_a_real_model_has_the_size_that_was_announced(tmp_path: Path) -> None:
    source = os.environ["QUANTKIT_TEST_MODEL"]
    outputs = {tmp_path / kind: kind for kind in ("int4", "int8", "mixed")}
    announced = {output: report.files for output, report in convert_all(source, outputs, dry_run=True).items()}
    convert_all(source, outputs)
    assert announced == {output: {file.name: file.stat().st_size for file in output.iterdir()} for output in outputs}


def rewritten(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Change the tensors of a checkpoint: name -> (dtype, array)."""
    file = SafetensorsFile(folder / "model.safetensors")
    tensors = {name: (entry.dtype, file.array(name, copy=True)) for name, entry in file.header.items()}
    change(tensors)
    tiny.write_safetensors(folder / "model.safetensors", tensors)
    return folder


def same_weights(a: Path, b: Path) -> bool:
    first, second = PackedModel(a), PackedModel(b)
    return set(first.names) == set(second.names) and all(
        first.manifest["tensors"][name]["sha256"] == second.manifest["tensors"][name]["sha256"] for name in first.names
    )


def test_what_the_model_does_not_use_is_reported_and_left_out(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "source", tie_word_embeddings=False)
    left = {"adapter.weight": ("BF16", np.zeros((2, 2), np.uint16))}
    rewritten(source, lambda it: it.update(left | {"lm_head.weight": it["model.embed_tokens.weight"]}))
    config = json.loads((source / "config.json").read_text()) | {"tie_word_embeddings": True}
    (source / "config.json").write_text(json.dumps(config))
    report = convert(source, tmp_path / "out")
    assert report.unused == ("adapter.weight",)
    assert not {"adapter.weight", "lm_head.weight"} & set(PackedModel(tmp_path / "out").names)  # a copy, silently


def test_a_tied_table_that_is_stored_as_the_head(tmp_path: Path) -> None:
    usual = tiny.checkpoint(tmp_path / "usual", tie_word_embeddings=True)
    other = tiny.checkpoint(tmp_path / "other", tie_word_embeddings=True)
    rewritten(other, lambda it: it.update({"lm_head.weight": it.pop("model.embed_tokens.weight")}))
    for source in (usual, other):
        convert(source, tmp_path / f"{source.name}-out")
    assert same_weights(tmp_path / "usual-out", tmp_path / "other-out")


def test_a_missing_bias_of_the_attention_output_stands_for_zeros(tmp_path: Path) -> None:
    """Qwen's weights under Llama's name: the configuration announces four biases, the checkpoint has three."""
    biases = [f"model.layers.{layer}.self_attn.o_proj.bias" for layer in range(2)]
    for name in ("zeros", "missing"):
        source = tiny.checkpoint(tmp_path / name, attention_bias=True)
        rewritten(source, lambda it: it.update({bias: ("BF16", 0 * it[bias][1]) for bias in biases}))
        if name == "missing":
            rewritten(source, lambda it: [it.pop(bias) for bias in biases])
        convert(source, tmp_path / f"{name}-out")
    assert same_weights(tmp_path / "zeros-out", tmp_path / "missing-out")
    rewritten(tmp_path / "missing", lambda it: it.pop("model.layers.0.self_attn.q_proj.bias"))
    with pytest.raises(CheckpointError, match=r"no tensor 'model\.layers\.0\.self_attn\.q_proj\.bias'"):
        convert(tmp_path / "missing", tmp_path / "out")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: os.truncate(file, file.stat().st_size // 2), "was truncated while it was read"),
        (lambda file: file.write_bytes(file.read_bytes()), "was changed while it was packed"),
    ],
)
def test_a_source_that_changes_meanwhile(tmp_path: Path, spoil: Callable[[Path], Any], message: str) -> None:
    source = tiny.checkpoint(tmp_path / "source")
    steps: list[Progress] = []

    def progress(now: Progress) -> None:
        if not steps:
            spoil(source / "model.safetensors")
        steps.append(now)

    with pytest.raises(CheckpointError, match=message) as error:
        convert(source, tmp_path / "out", progress=progress)
    assert str(source) in str(error.value)
    assert os.listdir(tmp_path) == ["source"]


def test_a_missing_tokenizer_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tiny.checkpoint(tmp_path / "source")
    (source / "tokenizer.json").unlink()
    convert(source, tmp_path / "out")
    assert f"{source}: has no tokenizer.json" in caplog.text
    assert not (tmp_path / "out/tokenizer.json").exists()


def test_force_replaces_a_model_and_nothing_else(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "out", "int8")
    with pytest.raises(PackedModelError, match=r"out: exists .*--force"):
        convert(checkpoint, tmp_path / "out")
    convert(checkpoint, tmp_path / "out", force=True)
    assert PackedModel(tmp_path / "out").manifest["options"]["quantize"] == "mixed"
    (tmp_path / "home" / "documents").mkdir(parents=True)
    (tmp_path / "file").write_text("data")
    source = tiny.checkpoint(tmp_path / "source")
    before = sorted(tmp_path.rglob("*"))
    for output in ("home", "file", "source", "."):
        with pytest.raises(PackedModelError, match="name another output"):
            convert(source, tmp_path / output, force=True)
    assert sorted(tmp_path.rglob("*")) == before


def poison(folder: Path, name: str) -> Path:
    """Put a NaN into a tensor of a BF16 checkpoint."""
    file = folder / "model.safetensors"
    raw = bytearray(file.read_bytes())
    size = int.from_bytes(raw[:8], "little")
    begin = 8 + size + json.loads(raw[8 : 8 + size])[name]["data_offsets"][0]
    raw[begin + 10 : begin + 12] = (0x7FC0).to_bytes(2, "little")
    file.write_bytes(raw)
    return folder


@pytest.mark.parametrize("name", ["lm_head.weight", "model.norm.weight"])
def test_nan_leaves_nothing(tmp_path: Path, name: str) -> None:
    source = poison(tiny.checkpoint(tmp_path / "source"), name)
    with pytest.raises(CheckpointError, match=rf"model.safetensors: tensor '{name}' holds NaN"):
        convert(source, tmp_path / "out")
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize(
    ("changes", "options", "error", "words"),
    [
        ({"model_type": "rwkv"}, {}, UnsupportedError, "rwkv"),
        ({"num_hidden_layers": 3}, {}, CheckpointError, "model.layers.2"),
        ({}, {"quantize": "int3"}, OptionError, "int3"),
        ({}, {"overrides": [("nothing", "int8")]}, OptionError, "nothing"),
        ({}, {"threads": 0}, OptionError, "threads"),
        ({}, {"threads": 1.5}, OptionError, "threads"),
        ({}, {"method": "gptq"}, OptionError, "method is 'gptq'; expected one of round, search, calibrate"),
        ({}, {"method": "round", "calibration": "builtin"}, OptionError, "calibration is .*none with method 'round'"),
        ({}, {"method": "search", "calibration": "builtin"}, OptionError, "calibration is .*none with method 'search'"),
        ({}, {"method": "round", "imatrix": "x.gguf"}, OptionError, "imatrix is .*none with method 'round'"),
        ({}, {"method": "calibrate", "imatrix": "x.gguf"}, OptionError, "imatrix is .*none with .*calibrat"),
        ({}, {"output": "source/config.json/out"}, PackedModelError, "config.json"),
    ],
)
def test_refused_before_any_work(
    tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], error: type[QuantkitError], words: str
) -> None:
    source = poison(tiny.checkpoint(tmp_path / "source"), "lm_head.weight")  # which nobody gets to see
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | changes))
    output = tmp_path / options.pop("output", "out")
    with pytest.raises(error, match=words):
        convert(source, output, **options)
    assert os.listdir(tmp_path) == ["source"]


def test_rounding_runs_no_model(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched = convert(checkpoint, tmp_path / "searched", method="search")
    monkeypatch.setattr(inputs, "measure", None)
    rounded = convert(checkpoint, tmp_path / "rounded", method="round")
    for name in bind(formats.open(checkpoint)).weights.names:
        found, source = PackedModel(tmp_path / "rounded").tensor(name), formats.open(checkpoint).tensor(name)
        wanted = encode(source.data, source.kind, (found.kind,), search=False)[found.kind]
        assert found.data.tobytes() == wanted.data.tobytes()
    assert rounded.packed_bytes == searched.packed_bytes
    manifests = [PackedModel(tmp_path / name).manifest for name in ("searched", "rounded")]
    assert [manifest["method"] for manifest in manifests] == ["search", "round"]
    assert "convert tiny -o DIR -q mixed --method round\n" in (tmp_path / "rounded" / "README.md").read_text()
    assert "--method" not in (tmp_path / "searched" / "README.md").read_text()


def test_calibrating_needs_no_text(tmp_path: Path, checkpoint: Path) -> None:
    convert(checkpoint, tmp_path / "named", calibration="builtin")
    convert(checkpoint, tmp_path / "asked", method="calibrate")
    verify(tmp_path / "asked")
    for file in (tmp_path / "named").iterdir():
        assert (tmp_path / "asked" / file.name).read_bytes() == file.read_bytes()
    assert PackedModel(tmp_path / "asked").manifest["method"] == "calibrate"


def test_the_preflight_loads_nothing_heavy(tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "source")
    code = (
        "import sys; from quantkit import convert;"
        f"convert({str(source)!r}, {str(tmp_path / 'out')!r}, dry_run=True);"
        "print(sorted({'numba', 'llvmlite', 'click', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("template", "noticed"),
    [
        ("{% for message in mess", r"chat_template\.jinja: the chat template, line 1: .*--ignore-chat-template alone"),
        ("{{ messages | foo }}", r"chat_template\.jinja: .*'foo'.*--ignore-chat-template alone"),
        ("{{ raise_exception('a system message first') }}", None),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_noticed(template: str, noticed: str | None, tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "source")
    (source / "chat_template.jinja").write_text(template)
    notices = convert(source, tmp_path / "out").notices
    assert len(notices) == (noticed is not None)
    if noticed:
        assert re.search(noticed, notices[0])
        with pytest.raises(StrictError, match=noticed):
            convert(source, tmp_path / "strict", strict=True)


TEXT_FILES: dict[str, tuple[str, str | Callable[[str], str], str]] = {
    "a pointer for the tokenizer": (
        "tokenizer.json",
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9085657\n",
        "Git LFS pointer",
    ),
    "a pointer for the template": (
        "chat_template.jinja",
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9085\n",
        "Git LFS pointer",
    ),
    "half a tokenizer": ("tokenizer.json", lambda text: text[: len(text) // 2], "tokenizers library"),
    "an empty tokenizer": ("tokenizer.json", "", "tokenizers library"),
    "half a tokenizer_config": ("tokenizer_config.json", lambda text: text[:-5], "JSON"),
    "generation_config with a comma too many": ("generation_config.json", '{"eos_token_id": 1,}', "JSON"),
    "generation_config that is a list": ("generation_config.json", "[1]", "JSON object"),
    "an end token that is a text": ("generation_config.json", '{"eos_token_id": "</s>"}', "eos_token_id"),
    "an end token that is a list in a list": ("generation_config.json", '{"eos_token_id": [[1]]}', "eos_token_id"),
    "an end token in config": (
        "config.json",
        lambda text: text.replace('"eos_token_id": 1', '"eos_token_id": 1.5'),
        "eos",
    ),
    "a decoder that cannot be streamed": (
        "tokenizer.json",
        lambda text: json.dumps(
            json.loads(text)
            | {"decoder": {"type": "CTC", "pad_token": "_", "word_delimiter_token": "|", "cleanup": True}}
        ),
        "decoder",
    ),
}


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("fault", TEXT_FILES)
def test_files_about_text_are_looked_into_before_any_work(tmp_path: Path, fault: str, dry_run: bool) -> None:
    source = poison(tiny.checkpoint(tmp_path / "source"), "lm_head.weight")  # which nobody gets to see
    name, content, words = TEXT_FILES[fault]
    text = (source / name).read_text()
    (source / name).write_text(content if isinstance(content, str) else content(text))
    assert (source / name).read_text() != text
    with pytest.raises(QuantkitError, match=rf"{source / name}: .*{words}"):
        convert(source, tmp_path / "out", dry_run=dry_run)
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize("name", ["a\nb", os.fsdecode(b"\xff\xfe"), "\x1b[31mred", "模型", "-q", " "])
def test_odd_names_of_the_source(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny.checkpoint(tmp_path / "plain").rename(tmp_path / name)
    (source / "inside").mkdir()
    monkeypatch.chdir(source / "inside")
    spellings: list[str | Path] = [source, f"{source}/", "..", "../.", f"../../{name}"]
    for number, spelling in enumerate(spellings):
        convert(spelling, tmp_path / str(number))
        manifest = json.loads((tmp_path / str(number) / "quantkit.json").read_bytes())
        assert manifest["source"]["name"] == os.fsencode(name).decode("utf-8", "replace")
    monkeypatch.chdir(source)
    convert(".", tmp_path / "out")
    assert json.loads((tmp_path / "out/quantkit.json").read_bytes())["source"] == manifest["source"]


LARGE: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 1024, "intermediate_size": 8192, "num_hidden_layers": 8},
    "phi3": {"hidden_size": 1024, "intermediate_size": 8192, "num_hidden_layers": 8},
    "gemma3_text": {"vocab_size": 262144, "hidden_size": 2048, "num_hidden_layers": 1},  # a table of 1 GB
    "qwen3_moe": {"hidden_size": 1024, "moe_intermediate_size": 1024, "num_experts": 32, "num_hidden_layers": 3},
    "llama4_text": {"hidden_size": 1024, "intermediate_size": 1024, "num_local_experts": 72, "num_hidden_layers": 2},
}
"""Checkpoints of 0.5 to 1 GB."""


@pytest.mark.parametrize("family", LARGE)
def test_memory_is_bounded(family: str, tmp_path: Path) -> None:
    """It grows neither with the model nor with its largest tensor, experts in stacks and tables included, but with half
    of a layer's bytes."""
    source = tmp_path / "source"
    source.mkdir()
    shape = {"vocab_size": 320, "num_attention_heads": 16, "num_key_value_heads": 16} | LARGE[family]
    config = tiny.config_of(family, **shape)
    (source / "config.json").write_text(json.dumps(config))
    header: dict[str, dict[str, Any]] = {}
    end = 0
    specs = read(config).record().tensors.values()
    pieces = (piece for spec in specs for piece in spec.pieces or (Piece(spec.name, spec.shape),))
    for name, size in {piece.name: piece.shape for piece in pieces}.items():
        begin, end = end, end + 2 * int(np.prod(size))
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(source / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)  # zeros that take no room on the disk
    assert end > 450e6
    code = (
        f"from quantkit import convert; found = convert({str(source)!r}, {str(tmp_path / 'out')!r});"
        "print(found.peak_rss, found.memory)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak, announced = map(int, done.stdout.split())
    assert peak <= LARGEST_MEMORY <= announced < 1.5 * end


def test_too_little_memory_is_told_before_any_work(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words = "may take up to 0.4 GB of memory, and this process may use 0.0 GB"
    for there, told in ((10**12, False), (None, False), (10**6, True)):
        monkeypatch.setattr("quantkit.quantization.conversion.usable_memory", lambda there=there: there)
        convert(checkpoint, tmp_path / "out", dry_run=True)
        assert (words in caplog.text) is told


@pytest.mark.parametrize("dry_run", [False, True])
def test_room_is_asked_for_before_any_work(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dry_run: bool
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=90_000))
    with pytest.raises(PackedModelError, match=r"out: 0\.1 MB are to be written, but the disk has room for 0\.1 MB"):
        convert(checkpoint, tmp_path / "out", dry_run=dry_run)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    code = f"from quantkit import convert; convert({str(checkpoint)!r}, {str(tmp_path / 'out')!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert done.returncode == 1
    assert "PackedModelError" in done.stderr.splitlines()[-1]
    assert "cannot be written" in done.stderr.splitlines()[-1]
    assert os.listdir(tmp_path) == []
