"""What a report adds up to, and what JSON says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
from quantkit import convert
from quantkit.formats.output import as_json
from quantkit.formats.packed import PackedModel
from quantkit.quantization.report import Report, TensorReport, codes, summed


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("report")
    return convert(tiny.checkpoint(folder / "tiny"), folder / "out", overrides=[("mlp.up", "bf16")])


def row(name: str, kind: str, nbytes: int, error: float | None = None, reason: str = "why") -> TensorReport:
    return TensorReport(name, kind, (nbytes,), "linear", nbytes, reason, error)


def test_sums_of_kinds_come_largest_first_with_errors_weighted_by_size() -> None:
    rows = [row("a", "int4", 10, 0.5), row("b", "int8", 60, 0.0), row("c", "int4", 30, 0.1, "other")]
    int8, int4 = summed(rows, by_reason=False)
    assert (int8.kind, int8.tensors, int8.nbytes, int8.largest_error) == ("int8", 1, 60, 0.0)
    assert (int4.reasons, int4.tensors, int4.weights, int4.largest_error) == (("why", "other"), 2, 40, 0.5)
    assert int4.mean_error == pytest.approx((0.5 * 10 + 0.1 * 30) / 40)
    assert [(each.kind, each.reasons) for each in summed(rows, by_reason=True)] == [
        ("int8", ("why",)),
        ("int4", ("other",)),
        ("int4", ("why",)),
    ]


@pytest.mark.parametrize(
    ("kept", "said"),
    [(None, ""), (0.0, "searched"), (1e-4, "1% kept"), (0.5, "50% kept"), (0.9999, "99% kept"), (1.0, "kept")],
)
def test_where_codes_come_from(kept: float | None, said: str) -> None:
    assert codes(kept) == said


def test_before_packing_no_error_is_known() -> None:
    (kind,) = summed([row("a", "int4", 10)], by_reason=False)
    assert (kind.mean_error, kind.largest_error) == (None, None)


def test_the_dictionary_is_what_the_report_says(report: Report) -> None:
    found = json.loads(as_json(report.to_dict()))
    assert found["source"] == {"name": "tiny", "dtype": "bfloat16"}
    assert found["options"] == {"quantize": "mixed", "overrides": [["mlp.up", "bf16"]]}
    assert found["folder_bytes"] == sum(found["files"].values()) == report.folder_bytes
    assert found["packed_bytes"] == sum(tensor["nbytes"] for tensor in found["tensors"])
    tensors = {tensor["name"]: tensor for tensor in found["tensors"]}
    up = tensors["model.layers.0.mlp.up_proj.weight"]
    assert (up["kind"], up["shape"], up["role"], up["reason"]) == ("bf16", [160, 64], "linear", "override mlp.up=bf16")
    assert {name: tensor["error"] for name, tensor in tensors.items()} == report.errors
    assert found["bytes_per_second"] == pytest.approx(report.source_bytes / report.seconds)


def test_reasons_and_errors_are_those_of_the_packed_folder(report: Report, tmp_path: Path) -> None:
    convert(tiny.checkpoint(tmp_path / "tiny"), tmp_path / "out", overrides=[("mlp.up", "bf16")])
    packed = PackedModel(tmp_path / "out")
    assert [tensor.name for tensor in report.tensors] == list(packed.names)
    for tensor in report.tensors:
        entry = packed.manifest["tensors"][tensor.name]
        assert (tensor.kind, tensor.error) == (packed.specs[tensor.name].kind, entry.get("relative_error", 0.0))
