"""A tiny checkpoint, packed once, and the command line called in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import tiny
from quantkit.cli.program import command_line
from quantkit_kernels.compile.folder import kernel_folder
from quantkit_kernels.simd import ISA

Invoke = Callable[..., Result]


@pytest.fixture
def invoke() -> Invoke:
    """Call `quantkit` with some arguments; `input` is its stdin."""
    return lambda *args, input=None: CliRunner().invoke(command_line, [str(arg) for arg in args], input=input)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder as downloaded; not to be written to."""
    return tiny.checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny-llama")


@pytest.fixture(scope="session")
def packed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, packed; not to be written to."""
    folder = tmp_path_factory.mktemp("packed") / "tiny-packed"
    result = CliRunner().invoke(command_line, ["convert", str(checkpoint), "-o", str(folder)])
    assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture
def model_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let models that are packed on the way go to a folder of the test's; compiled kernels stay where they are."""
    (tmp_path / "cache").mkdir()
    if (kept := kernel_folder(ISA)) is not None:
        (tmp_path / "cache/kernels").symlink_to(kept.parent)
    monkeypatch.setenv("QUANTKIT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache/models"
