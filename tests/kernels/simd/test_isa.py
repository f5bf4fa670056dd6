"""Instruction sets: each must compute what numpy does, or is not used; and each its own instructions."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import pytest
from llvmlite import ir

import quantkit_kernels
from quantkit_kernels import blocks
from quantkit_kernels.simd import check, isa
from quantkit_kernels.simd.instruction_sets import SETS, Avx2, Avx512Vnni, AvxVnni, Dot, Neon
from quantkit_kernels.simd.memory import _widen_f16
from quantkit_kernels.simd.registers import F16, I64, call_llvm, load_at, store_at

PROCESSOR, FEATURES = isa.PROCESSOR, isa.FEATURES
HERE = isa.usable_sets(FEATURES)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is remembered from before."""
    monkeypatch.setattr(quantkit_kernels, "cache_folder", lambda name: tmp_path / name)
    return tmp_path


class Forgetful(Dot):
    """A wrong set: the last chunk counts alone."""

    def i8_dot(self, builder: Any, acc: Any, codes: Any, x: Any) -> Any:
        return super().i8_dot(builder, acc.type(None), codes, x)


class Saturating(Dot):
    """A wrong set, but only for extremes: the product with the scale loses what is above 2**20."""

    def u_scaled(self, builder: Any, acc: Any, scales: Any) -> Any:
        product = super().u_scaled(builder, acc, scales)
        limit = product.type([2.0**20] * product.type.count)
        return builder.select(builder.fcmp_ordered("<", product, limit), product, limit)


class Sectional(Dot):
    """A wrong set, but only for codes of more than four bits: the last section of a group counts alone."""

    def u_next_section(self, builder: Any, acc: Any) -> Any:
        return acc.type(None)


class Unknown(Dot):
    """A set whose instruction this LLVM does not have."""

    def u_dot(self, builder: Any, acc: Any, codes: Any, x: Any) -> Any:
        return call_llvm(builder, "llvm.vector.reduce.add.v8i32", acc.type, x)  # of other types than this


@pytest.mark.parametrize(
    ("features", "usable"),
    [
        ("+avx2,+f16c,+avx512vl,+avx512vnni,+avxvnni", ["avx512vnni", "avxvnni", "avx2", "generic"]),
        ("+avx2,+f16c,-avx512vl,-avx512vnni,+avxvnni", ["avxvnni", "avx2", "generic"]),
        ("+avx2,+f16c,-avx512vl,-avx512vnni,-avxvnni", ["avx2", "generic"]),
        ("+avx2,+f16c", ["avx2", "generic"]),
        ("-avx2,+f16c", ["generic"]),
        ("+neon,+dotprod", ["neon", "generic"]),
        ("+neon,-dotprod", ["generic"]),
        ("", ["generic"]),
    ],
)
def test_a_feature_is_present_where_its_sign_is_plus(features: str, usable: list[str]) -> None:
    assert isa.usable_sets(features) == usable


def test_the_set_in_use_is_one_of_this_machine() -> None:
    assert isa.ISA in HERE


@pytest.mark.parametrize("name", HERE)
def test_every_set_of_this_machine_computes_as_numpy(name: str) -> None:
    assert check.agrees(SETS[name][0], PROCESSOR, FEATURES)


@pytest.mark.parametrize("wrong", [Forgetful, Saturating, Sectional, Unknown])
def test_a_wrong_set_is_not_used_and_one_warning_says_so(
    wrong: type[Dot], empty_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(SETS, "wrong", (wrong(), frozenset()))
    with caplog.at_level(logging.WARNING):
        assert isa.first_right(["wrong", "generic"], PROCESSOR, FEATURES) == "generic"
    assert ["instruction set wrong" in record.getMessage() for record in caplog.records] == [True]


def test_no_set_at_all_is_an_error(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETS, "generic", (Forgetful(), frozenset()))
    with pytest.raises(RuntimeError, match="no instruction set computes rightly"):
        isa.first_right(["generic"], PROCESSOR, FEATURES)


def test_a_pass_is_remembered_and_a_failure_is_not(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def agrees(dot: Dot, processor: str, features: str) -> bool:
        compared.append(dot)
        return type(dot) is Dot

    monkeypatch.setattr(isa, "agrees", agrees)
    monkeypatch.setitem(SETS, "wrong", (Forgetful(), frozenset()))
    wrong, generic = SETS["wrong"][0], SETS["generic"][0]
    for _ in range(2):
        assert isa.first_right(["generic"], PROCESSOR, FEATURES) == "generic"
    assert compared == [generic]
    assert isa.first_right(["wrong", "generic"], PROCESSOR, FEATURES) == "generic"
    assert compared == [generic, wrong]
    isa.first_right(["wrong", "generic"], PROCESSOR, FEATURES)
    assert compared == [generic, wrong, wrong]
    isa.first_right(["generic"], "another processor", FEATURES)
    assert compared == [generic, wrong, wrong, generic]


def test_without_a_folder_the_choice_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for place in (None, lambda name: tmp_path / "missing" / name):
        monkeypatch.setattr(quantkit_kernels, "cache_folder", place)
        assert isa.first_right(["generic"], PROCESSOR, FEATURES) == "generic"
    assert len(caplog.records) == 1


X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
SHUFFLES = r"\b(zip[12]|uzp[12]|trn[12]|tbl|ext|mov)\s+v\d+\.(16b|4s|2d)"
"""Of whole registers; the 8 bytes of scales are widened by a zip of halves."""


def assembly(module: ir.Module, triple: str, features: str) -> dict[str, list[str]]:
    """What the functions of `module` become on another machine: their instructions, by name."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(triple).create_target_machine(features=features, opt=3)
    module.triple = triple
    text = target.emit_assembly(check.optimized(module, target))
    functions = re.findall(r"^(\w+):(.*?)\.Lfunc_end", text, re.M | re.S)
    return {name: [" ".join(line.split()) for line in body.splitlines()] for name, body in functions}


@pytest.mark.parametrize(
    ("dot", "triple", "features", "instruction", "register", "count"),
    [
        (Avx512Vnni(), X86, "+avx2,+avx512f,+avx512vl,+avx512bw,+avx512vnni", "vpdpbusd", "%zmm", 8),
        (AvxVnni(), X86, "+avx2,+avxvnni", "{vex} vpdpbusd", "%ymm", 8),
        (AvxVnni(), X86, "+avx2,+avx512f,+avx512vl,+avx512vnni", "vpdpbusd", "%ymm", 8),
        (Avx2(), X86, "+avx2", "vpmaddubsw", "%ymm", 8),
        (Neon(), ARM, "+dotprod", "sdot", ".16b", 16),
        (Neon(), ARM, "+dotprod,+i8mm,+sve2", "sdot", ".16b", 16),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Dot) else None,
)
def test_assembly_has_the_instructions_of_the_set(
    dot: Dot, triple: str, features: str, instruction: str, register: str, count: int
) -> None:
    functions = assembly(check.module_of(dot), triple, features)
    assert list(functions) == [*blocks.WITH_MINS, "int8", "i16"]
    for lines in (functions[kind] for kind in (*blocks.WITH_MINS, "int8")):
        dots = [line for line in lines if line.startswith(instruction)]
        assert len(dots) == count, lines
        assert all(register in line for line in dots), lines
        if isinstance(dot, Neon):  # two registers of 128 bits are one of 256 without moving a byte
            assert not any(re.search(SHUFFLES, line) for line in lines), lines


@pytest.mark.parametrize(
    ("dot", "features", "instruction", "count"),
    [
        (Avx512Vnni(), "+avx2,+avx512f,+avx512vl,+avx512bw,+avx512vnni", "vpdpwssd|vpmaddwd", 2),
        (AvxVnni(), "+avx2,+avxvnni", "{vex} vpdpwssd|vpmaddwd", 4),
        (Avx2(), "+avx2", "vpmaddwd", 4),
    ],
)
def test_pairs_of_int16_are_multiplied_by_one_instruction(
    dot: Dot, features: str, instruction: str, count: int
) -> None:
    lines = assembly(check.module_of(dot), X86, features)["i16"]
    # LLVM makes the sum an instruction of its own where waiting for it would take longer.
    assert sum(bool(re.match(instruction, line)) for line in lines) == count, lines


@pytest.mark.parametrize(
    ("triple", "features", "conversions"),
    [(X86, "+avx2,+f16c", ["vcvtph2ps"]), (ARM, "+dotprod", ["fcvtl", "fcvtl"])],
)
def test_f16_is_converted_8_at_a_time(triple: str, features: str, conversions: list[str]) -> None:
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64, I64]), "widen")
    builder = ir.IRBuilder(function.append_basic_block())
    store_at(builder, _widen_f16(builder, load_at(builder, ir.VectorType(F16, 8), function.args[0])), function.args[1])
    builder.ret_void()
    lines = assembly(module, triple, features)["widen"]
    found = [line.split()[0] for line in lines if re.match(r"v?cvt|fcvt|call|bl\b", line)]
    # NEON has an instruction for each half of a register; LLVM before 20 does without that of the upper one.
    assert [conversion.removesuffix("2") for conversion in found] == conversions, lines
