"""The HTML page: it stands alone, is well-formed, escapes what strangers wrote, and shows what the report says."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

import tiny
from quantkit import convert
from quantkit.quantization.report import Report, TensorReport
from quantkit.quantization.report.chart import Axes, chart, marks_of
from quantkit.quantization.report.page import page
from quantkit_kernels.blocks import KINDS

HOSTILE = "</title></td><script>alert(1)</script>\x1b[31m\n‮&amp;\"'"
VOID = {"meta", "link", "br"}


class Reader(HTMLParser):
    """Notes what a browser would see: elements, their attributes, and texts; checks that each element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("page")
    return convert(tiny.checkpoint(folder / "tiny"), folder / "out", overrides=[("mlp.up", "bf16")])


def test_it_needs_nothing_but_itself(report: Report) -> None:
    html = page(report).decode()
    read = Reader(html)
    assert not {"script", "link", "img", "iframe", "object"} & read.elements.keys()
    assert not [name for name, _ in read.attributes if name in ("src", "href", "srcset") or name.startswith("on")]
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html


def test_it_says_where_codes_come_from_if_the_source_has_some(report: Report) -> None:
    kept = replace(report, tensors=tuple(replace(tensor, kept_codes=0.5) for tensor in report.tensors))
    assert Reader(page(kept).decode()).texts.count("50% kept") == len(report.tensors)
    assert "Codes" not in Reader(page(report).decode()).texts


def test_it_shows_every_tensor_the_worst_first(report: Report) -> None:
    html = page(report).decode()
    rows = re.findall(
        r'<tr><th scope="row">([^<]+)</th><td>([^<]+)</td><td>[^<]*</td><td[^>]*>[^<]*</td><td[^>]*>([^<]*)', html
    )
    errors = {name: float(error) for name, _, error in rows if "." in name}
    assert errors.keys() == report.errors.keys()
    assert list(errors.values()) == sorted(errors.values(), reverse=True)
    assert errors["lm_head.weight"] == pytest.approx(report.errors["lm_head.weight"], rel=0.01)


def test_tables_can_be_read_aloud(report: Report) -> None:
    read = Reader(page(report).decode())
    assert read.elements["table"] == read.elements["caption"] == 2
    assert ("lang", "en") in read.attributes
    assert ("aria-sort", "descending") in read.attributes
    assert ("role", "img") in read.attributes
    assert read.elements["svg"] >= 1


def test_names_are_no_markup(report: Report) -> None:
    named = [
        replace(tensor, name=f"{HOSTILE}{tensor.name}", reason=f"{HOSTILE}{tensor.reason}") for tensor in report.tensors
    ]
    hostile = replace(
        report,
        tensors=tuple(named),
        source={**report.source, "name": HOSTILE},
        options={"quantize": "int4", "overrides": [[re.escape(HOSTILE), "int8"]]},
        notices=(HOSTILE,),
    )
    plain, read = Reader(page(replace(report, notices=("a",))).decode()), Reader(page(hostile).decode())
    plain.elements.subtract(read.elements)
    assert plain.elements["script"] == plain.elements["title"] == plain.elements["td"] == 0
    assert "script" not in read.elements
    text = "".join(read.texts)
    assert "<script>alert(1)</script>" in text
    assert not {"\x1b", "‮"} & set(text)


def test_without_errors_there_is_no_chart(report: Report) -> None:
    dry = replace(report, tensors=tuple(replace(tensor, error=None) for tensor in report.tensors))
    html = page(dry).decode()
    assert chart(dry.tensors) == ""
    assert "<figure" not in html
    assert "dry run" in html


def tensor(name: str, error: float, role: str = "expert", kind: str = "int4") -> TensorReport:
    return TensorReport(name, kind, (8, 32), role, 1, "why", error)  # type: ignore[arg-type]


def test_experts_of_a_layer_are_one_mark() -> None:
    tensors = [tensor(f"model.layers.3.mlp.experts.{n}.up_proj.weight", 0.001 * (n + 1)) for n in range(4)]
    tensors += [tensor("model.embed.weight", 1e-5, "embedding", "int8"), tensor("lm_head.weight", 1e-5, "head", "int8")]
    experts, embedding, head = marks_of([*tensors, tensor("model.norm.weight", 0.0, "norm", "f32")])
    assert (experts.label, experts.layer) == ("model.layers.3.mlp.experts.*.up_proj.weight", 3)
    assert experts.mean == pytest.approx(0.0025)
    assert "4 tensors" in experts.title
    assert (embedding.layer, head.layer) == (-1, 4)
    assert chart(tensors).count('<path class="span"') == 1


def test_each_kind_has_a_panel_whose_scale_holds_its_errors() -> None:
    drawn = chart([tensor("a.0.x", 1e-3), tensor("a.1.x", 4e-3), tensor("lm_head.weight", 1e-5, "head", "int8")])
    assert re.findall(r'<text class="kind"[^>]*>(\w+)<', drawn) == ["int4", "int8"]
    assert re.findall(r'<text class="axis"[^>]*>(\d+e-\d+)<', drawn) == [
        "9e-04",
        "1e-03",
        "2e-03",
        "3e-03",
        "4e-03",
        "9e-06",
        "1e-05",
    ]
    places = re.findall(r'class="mark" transform="translate\(([\d.]+) ([\d.]+)\)"', drawn)
    height = int(re.findall(r'viewBox="0 0 960 (\d+)"', drawn)[0])
    assert [0 < float(x) < 960 and 0 < float(y) < height for x, y in places] == [True] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_a_mark_and_a_colour_of_its_own(report: Report, kind: str) -> None:
    marks = {of: re.findall(r'class="mark".* d="(.*?)">', chart([tensor("a.0.x", 1e-3, kind=of)])) for of in KINDS}
    assert sorted(marks.values()).count(marks[kind]) == 1
    html = page(report).decode()
    colours = {of: tuple(re.findall(rf"--{of}: (#\w{{6}});", html)) for of in KINDS}
    light, dark = colours[kind]
    assert light != dark
    assert list(colours.values()).count((light, dark)) == 1


@pytest.mark.parametrize("errors", [(1e-3, 1e-3), (1e-300, 1.0), (5e-324, 5e-324), (1.0, 1e10)])
def test_lines_are_few_and_within_the_panel(errors: tuple[float, float]) -> None:
    axes = Axes(0, 1, math.log10(errors[0]) - 0.1, math.log10(errors[1]) + 0.1, 0)
    assert 0 <= len(axes.lines) <= 6
    assert all(-1 <= axes.y(error) <= 180 for error in axes.lines)


def test_saving(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_bytes() == page(report)
