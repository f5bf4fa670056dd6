"""Parts end up in the entries that call them, and nowhere else."""

from __future__ import annotations

import pytest
from numba import int64, njit

from quantkit_kernels.compile.compiler import FLAGS
from quantkit_kernels.compile.jit import jit
from quantkit_kernels.compile.linking import EntryCompiler


def _adder(number):
    @jit
    def add(x):
        return x + number

    return add


_one, _ten = _adder(1), _adder(10)


@jit
def _both(x):
    return _ten(_one(x))


@jit(entry=True)
def _call_both(x):
    return _both(x) + _one(0)


def test_an_entry_calls_parts_through_parts() -> None:
    assert _call_both(3) == 15


def test_python_cannot_call_a_part() -> None:
    _call_both(3)
    with pytest.raises(TypeError):
        _one(3)


def test_functions_of_an_entry_are_its_own() -> None:
    """Closures share a name, so the loader must not choose among those of different entries."""
    compiled = njit(pipeline_class=EntryCompiler, **FLAGS)(_call_both.py_func)  # what the cache holds is machine code
    compiled.compile((int64,))
    (overload,) = compiled.overloads.values()
    visible = [f.name for f in overload.library.get_defined_functions() if f.linkage.name != "internal"]
    assert visible
    assert all("call_both" in name for name in visible)
