"""`import quantkit`: the public names, each where it is said to be, and nothing heavy before it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import quantkit
import tiny
from quantkit.formats.packed import is_packed, verify
from quantkit.quantization.packed_copies import packed_copy


def run(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_loads_nothing_heavy() -> None:
    heavy = "{'numba', 'llvmlite', 'numpy', 'tokenizers', 'jinja2', 'click', 'rich', 'quantkit_kernels.simd'}"
    assert run(f"import sys, quantkit; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_import_is_fast() -> None:
    code = "import time; begin = time.perf_counter(); import quantkit; print(time.perf_counter() - begin)"
    assert min(float(run(code)) for _ in range(3)) < 0.2


def test_text_side_needs_no_numba() -> None:
    names = "Tokenizer, generate, make_sampler, make_logits_processors, perplexity, GenerationError"
    assert run(f"import sys; from quantkit import {names}; print('numba' in sys.modules)") == "False"


@pytest.mark.parametrize("name", quantkit.__all__)
def test_public_names_exist(name: str) -> None:
    assert getattr(quantkit, name) is not None
    assert name in dir(quantkit)


@pytest.mark.parametrize("name", sorted(set(quantkit.__all__) - {"__version__"}))
def test_no_module_has_the_name_of_a_public_function(name: str) -> None:
    modules = {path.stem for path in Path(quantkit.__file__).parent.rglob("*.py") if "cli" not in path.parts}
    assert name not in modules


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'generat'"):
        quantkit.generat  # noqa: B018


def test_version_is_that_of_the_package() -> None:
    assert quantkit.__version__.count(".") == 2


def test_a_tilde_is_the_home_folder(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.checkpoint(tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    quantkit.convert("~/model", "~/packed")
    assert is_packed("~/packed")
    assert verify("~/packed")
    for path in ("~/packed", Path("~/model")):
        model, tokenizer = quantkit.load(path)
        assert tokenizer.vocab_size == quantkit.Tokenizer.from_folder(path).vocab_size <= model.vocab_size
    with packed_copy("~/packed") as folder:
        assert folder == tmp_path / "packed"
    assert quantkit.dequantize("~/packed", "~/unpacked") == "bfloat16"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "packed", "unpacked"]
    assert not list(Path().iterdir())
