"""Every architecture from a GGUF file answers as from a Hugging Face folder, and as llama.cpp does."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from golden.generate import token_ids
from quantkit.generation.loading import load_model
from quantkit.models.gguf.tables import DIALECTS
from quantkit.quantization.conversion import convert
from tiny_gguf_families import CASES, FILE, NEWER, write

ROUNDED = dict.fromkeys(
    (
        *("llama_llama3_rope", "mamba", "falcon_mamba", "jamba", "jamba_one_expert", "mamba2", "bamba"),
        *("granitemoehybrid", "nemotron_h", "nemotron_h_experts", "falcon_h1", "falcon_h1_no_norm"),
        *("qwen3_5_text", "qwen3_5_text_tiled", "qwen3_5_moe_text", "qwen3_next"),
    ),
    1e-4,
)
"""Cases where GGUF stores the result of a computation, and how much logits differ at most."""

OTHERWISE_IN_LLAMA_CPP = frozenset(
    (
        *("olmo3", "gpt_oss", "glm4_moe_lite", "gemma4_text"),
        *("bamba", "gemma3n_text_published_ranks", "phimoe"),
    )
)
"""llama.cpp multiplies yarn's own factor and the config's; rounds the bounds of yarn's ramp; knows GLM by its size;
ends the process where Gemma 4's last layers share keys in so small a model; turns channels of Bamba that its converter
took for others; divides by one less for the deviation of Gemma 3n's gates; weighs Phi's experts by a plain softmax.
transformers answers as quantkit does in all of them."""

TOLERANCE = 5e-3
"""Of llama.cpp's logits: it looks GELU up in a table of 16-bit numbers."""


def logits(path: Path) -> NDArray[np.float32]:
    model = load_model(path, threads=1, kv_dtype="f32")
    try:
        return model(token_ids(model.vocab_size))
    finally:
        model.close()


@pytest.mark.parametrize("name", CASES)
def test_answers_as_the_folder(name: str, tmp_path: Path) -> None:
    """Bit for bit: weights are the same, or nearly where a 1 was added to them and taken off."""
    found = logits(write(tmp_path / "tiny.gguf", name))
    expected = logits(CASES[name].checkpoint(tmp_path / "folder"))
    if name in ROUNDED:
        np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDED[name])
    else:
        np.testing.assert_array_equal(found, expected)


def test_every_architecture_has_a_case() -> None:
    known = json.loads(FILE.read_text())
    assert known.keys() == CASES.keys()
    assert {case["architecture"] for case in known.values()} == DIALECTS.keys()
    assert DIALECTS.keys() <= {*gguf.MODEL_ARCH_NAMES.values(), *NEWER}


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "gemma3_text", "falcon_new"])
def test_packs(name: str, tmp_path: Path) -> None:
    convert(write(tmp_path / "tiny.gguf", name), tmp_path / "packed")
    convert(CASES[name].checkpoint(tmp_path / "folder"), tmp_path / "expected")
    np.testing.assert_array_equal(logits(tmp_path / "packed"), logits(tmp_path / "expected"))


@pytest.mark.live
def test_files_are_what_llama_cpp_s_converter_writes(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "golden" / "llama_cpp_convert.py"
    kept = tmp_path / "files.json"
    command = [sys.executable, str(script), os.environ["QUANTKIT_TEST_LLAMA_CPP"], str(tmp_path), str(kept)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    assert json.loads(kept.read_text()) == json.loads(FILE.read_text())
    if importlib.util.find_spec("llama_cpp") is None:
        return
    for name in CASES.keys() - OTHERWISE_IN_LLAMA_CPP:
        expected = llama_cpp_logits(tmp_path / f"{name}.gguf")
        if expected is not None:
            np.testing.assert_allclose(logits(tmp_path / f"{name}.gguf"), expected, rtol=0, atol=TOLERANCE)


def llama_cpp_logits(file: Path) -> NDArray[np.float32] | None:
    """Ask llama.cpp; None where it refuses the file, as it does for sizes and biases that no model has."""
    from llama_cpp import Llama

    try:
        model = Llama(str(file), n_ctx=64, n_threads=1, logits_all=True, verbose=False, type_k=0, type_v=0)
    except ValueError:
        return None
    tokens = token_ids(model.n_vocab())
    model.eval(tokens)
    found: NDArray[np.float32] = np.array(model.scores[: len(tokens)])
    return found
