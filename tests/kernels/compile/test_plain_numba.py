"""Where numba lacks a name that it keeps to itself, kernels are compiled without it: slower, with the same results."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest

from quantkit_kernels.compile.private import require


class Run(Protocol):
    """Calls entries in a process of its own; returns a line each (result, hits in the cache) and stderr."""

    def __call__(self, before: str, *names: str, cache: str = "cache") -> tuple[list[str], str]: ...


TESTS = Path(__file__).parents[2]

ENTRIES = """
import sys

from quantkit_kernels.compile.jit import jit

def adder(number):
    @jit
    def add(x):
        for i in range(x):  # too long to be inlined
            x = (x * 31 + i) % 1000003
            if x % 7 == 3:
                x += i * i
        return x + number

    return add

one, ten = adder(0), adder(10)

@jit(entry=True)
def first(x):
    return one(x) + one(x + 1)

@jit(entry=True)
def second(x):
    return ten(x) + ten(x + 1)

for name in sys.argv[1:]:
    entry = globals()[name]
    print(entry(5), sum(entry.dispatcher.stats.cache_hits.values()))
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "entries.py").write_text(ENTRIES)

    def run(before: str, *names: str, cache: str = "cache") -> tuple[list[str], str]:
        start = f"{before}; import quantkit, runpy; runpy.run_path('entries.py', run_name='quantkit_kernels.entries')"
        environment = os.environ | {
            "QUANTKIT_CACHE_DIR": str(tmp_path / cache),
            "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
        }
        done = subprocess.run(
            [sys.executable, "-c", start, *names],
            cwd=tmp_path,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.splitlines(), done.stderr

    return run


def test_kernels_are_compiled_by_numba_alone_and_one_warning_says_so(run: Run) -> None:
    linked, silent = run("pass", "first", "second")
    assert silent == ""
    plain, warned = run("import plain_numba", "first", "second", cache="another")
    assert plain == linked
    assert len(warned.splitlines()) == 1
    assert "CompilerBase" in warned


def test_closures_of_one_name_from_the_cache_and_from_now_are_not_confused(run: Run) -> None:
    (printed,), _ = run("import plain_numba", "first")
    first = int(printed.removesuffix(" 0"))
    assert run("import plain_numba", "first", "second")[0] == [f"{first} 1", f"{first + 20} 0"]
    assert run("import plain_numba", "second", "first")[0] == [f"{first + 20} 1", f"{first} 1"]


def test_kernels_are_not_kept_where_numba_cannot_say_how(run: Run) -> None:
    hide = "import numba.core.compiler; del numba.core.compiler.CompileResult._rebuild"
    for _ in range(2):
        printed, warned = run(hide, "first")
        assert printed[0].endswith(" 0")
        assert len(warned.splitlines()) == 1
        assert "compiled kernels are not kept: numba" in warned


def test_a_missing_name_is_named() -> None:
    require(Path, "home")
    with pytest.raises(ImportError, match=r"numba .* has no Path\.nowhere"):
        require(Path, "home", "nowhere")
