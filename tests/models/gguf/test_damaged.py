"""Damaged GGUF files of all architectures: one line that names the file, whatever is wrong; never another exception."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantkit import formats
from quantkit.engine.binding import bind
from quantkit.errors import CheckpointError, UnsupportedError
from tiny_gguf_families import FILE, write

NAMES = (
    *("llama", "phi3_partial_rope", "gemma3_text", "mixtral", "deepseek_v3", "lfm2_moe", "granitemoehybrid"),
    *("qwen3_5_text_tiled", "gpt_oss", "mamba2", "apertus", "dbrx", "falcon_h1", "gemma3n_text", "hy_v3", "jamba"),
    *("llama4_text", "llama_fused", "mamba", "minicpm3", "mpt", "nemotron_h_experts"),
)


fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    for name in NAMES:
        write(folder / name, name)
    return folder


def use(path: Path) -> None:
    """Bind the file and read its tensors; what is wrong is said in one line."""
    complaint = f"{path}: "
    try:
        bound = bind(formats.open(path))
        json.dumps(bound.architecture.source)
        for name in bound.weights.names:
            with np.errstate(all="ignore"):  # a logarithm of what is none
                bound.weights.tensor(name, copy=True)
    except (CheckpointError, UnsupportedError) as error:
        complaint = str(error)
    assert complaint.startswith(f"{path}: ")
    assert "\n" not in complaint


@fuzz
@given(
    name=st.sampled_from(NAMES),
    edits=st.lists(st.tuples(st.integers(0, 2**20), st.binary(min_size=1, max_size=8)), min_size=1, max_size=3),
)
def test_damaged_headers(name: str, edits: list[tuple[int, bytes]], folder: Path, tmp_path: Path) -> None:
    content = bytearray((folder / name).read_bytes())
    own = content.index(b".block_count"), content.rindex(b"tokenizer.ggml.model")
    tensors = content.rindex(b"chat_template"), content.rindex(b".weight")
    for number, (place, value) in enumerate(edits):
        begin, end = tensors if number % 2 else own
        place = begin + place % (end - begin)
        content[place : place + len(value)] = value
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    use(path)


VALUES = st.one_of(
    st.integers(0, 2**32 - 1),
    st.integers(0, 9),
    st.floats(width=32, allow_nan=True),
    st.booleans(),
    st.text(max_size=5, alphabet=st.characters(codec="utf-8")),
    st.lists(st.integers(0, 5), min_size=1, max_size=4),
    st.lists(st.booleans(), min_size=1, max_size=4),
    st.lists(st.sampled_from(["a", ""]), min_size=1, max_size=3),
)


@fuzz
@given(data=st.data())
def test_any_value_of_any_key(data: st.DataObject, tmp_path: Path) -> None:
    name = data.draw(st.sampled_from(NAMES))
    keys = [*json.loads(FILE.read_text())[name]["metadata"], "rope.scaling.type", "attention.sliding_window_pattern"]
    changes: dict[str, Any] = data.draw(st.dictionaries(st.sampled_from(keys), VALUES, min_size=1, max_size=2))
    use(write(tmp_path / "x.gguf", name, changes))


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Two gigabytes more than the process has: what is made for each of a billion layers ends in a `MemoryError`."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**31, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", json.loads(FILE.read_text()))
def test_huge_numbers(name: str, tmp_path: Path, little_memory: None) -> None:
    for key, value in json.loads(FILE.read_text())[name]["metadata"].items():
        if type(value) in (int, list):
            for huge in (2**31 - 1, 100_000):
                use(write(tmp_path / "x.gguf", name, {key: [huge] * len(value) if isinstance(value, list) else huge}))
