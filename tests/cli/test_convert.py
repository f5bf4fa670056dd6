"""`quantkit convert` and `quantkit dequantize`: options, aliases, report, and the way back."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest

import tiny
from invocation import Invoke
from quantkit.cli.commands import convert
from quantkit.quantization.calibration import curvature
from quantkit.quantization.plan import METHODS
from quantkit_kernels.blocks import KINDS


def kinds(invoke: Invoke, folder: Path) -> dict[str, str]:
    rows = json.loads(invoke("inspect", folder, "--json").stdout)["tensors"]
    return {row["name"].removeprefix("model.layers.0."): row["kind"] for row in rows}


def test_the_report_is_on_stdout_and_nothing_else_is_said(invoke: Invoke, checkpoint: Path, tmp_path: Path) -> None:
    result = invoke("convert", checkpoint, "-o", tmp_path / "out")
    assert (result.exit_code, result.stderr) == (0, "")
    header, *rows, target, summary = result.stdout.splitlines()
    assert header.split() == ["kind", "tensors", "weights", "size"]
    assert [row.split()[0] for row in rows] == ["int6", "int5", "int4", "f32"]
    assert target == "mixed: at most 104 KB, at least 87 KB; sensitivities by a rule"
    assert summary.startswith("6.52 bits per weight, 255 KB before, 104 KB after, ")


@pytest.mark.parametrize(
    ("args", "asked", "kind"),
    [
        ((), "mixed", "int4"),
        (("-q", "mixed"), "mixed", "int4"),
        (("-q", "int5"), "int5", "int5"),
        (("-q", "int8"), "int8", "int8"),
        (("--bits", "5"), "int5", "int5"),
        (("--bits", "8"), "int8", "int8"),
        (("--q-bits", "4", "-q", "int4"), "int4", "int4"),
    ],
)
def test_the_kind_is_named_or_given_by_its_bits(
    invoke: Invoke, checkpoint: Path, tmp_path: Path, args: tuple[str, ...], asked: str, kind: str
) -> None:
    assert invoke("convert", checkpoint, "-o", tmp_path / "out", *args).exit_code == 0
    assert kinds(invoke, tmp_path / "out")["mlp.up_proj.weight"] == kind
    assert json.loads((tmp_path / "out/quantkit.json").read_bytes())["options"]["quantize"] == asked


def test_contradicting_kinds_are_refused(invoke: Invoke, checkpoint: Path, tmp_path: Path) -> None:
    result = invoke("convert", checkpoint, "-o", tmp_path / "out", "--bits", "4", "-q", "int8")
    assert result.exit_code == 2
    assert "contradicts" in result.stderr


def test_several_kinds_are_folders_of_their_own(invoke: Invoke, checkpoint: Path, tmp_path: Path) -> None:
    result = invoke(
        "convert", checkpoint, "-o", tmp_path / "out", "-q", "int4,int5,int6,int8", "--override", "down=f16"
    )
    assert result.exit_code == 0
    assert sorted(os.listdir(tmp_path)) == ["out-int4", "out-int5", "out-int6", "out-int8"]
    for kind in ("int4", "int5", "int6", "int8"):
        found = kinds(invoke, tmp_path / f"out-{kind}")
        assert (found["mlp.up_proj.weight"], found["mlp.down_proj.weight"]) == (kind, "f16")
        assert f"{tmp_path / f'out-{kind}'}:" in result.stdout.splitlines()
    for wrong in ("int4,int3", "int4,int4", "int4,", ""):
        result = invoke("convert", checkpoint, "-o", tmp_path / "out", "-q", wrong)
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"{wrong!r} is not a list of mixed, int4, int5, int6, int8" in result.stderr


@pytest.mark.parametrize("option", ["--override", "--tensor-type"])
def test_overrides(invoke: Invoke, checkpoint: Path, tmp_path: Path, option: str) -> None:
    args = ("-q", "int4", option, "mlp=int8", option, r"layers\.0\.mlp\.up=f16", option, "embed=bf16")
    assert invoke("convert", checkpoint, "-o", tmp_path / "out", *args).exit_code == 0
    found = kinds(invoke, tmp_path / "out")
    assert found["mlp.down_proj.weight"] == "int8"
    assert found["mlp.up_proj.weight"] == "f16"
    assert found["model.embed_tokens.weight"] == "bf16"
    assert found["self_attn.q_proj.weight"] == "int4"


@pytest.mark.parametrize("override", ["mlp=int3", "(=int4"])
def test_options_are_checked_before_anything_is_opened(invoke: Invoke, tmp_path: Path, override: str) -> None:
    result = invoke("convert", tmp_path / "no such model", "-o", tmp_path / "out", "--override", override)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: override {override}: ")


@pytest.mark.parametrize("override", ["mlp=int3", "(=int4", "no such tensor=int4"])
def test_overrides_that_mean_nothing_are_refused(
    invoke: Invoke, checkpoint: Path, tmp_path: Path, override: str
) -> None:
    result = invoke("convert", checkpoint, "-o", tmp_path / "out", "--override", override)
    assert (result.exit_code, result.stdout) == (2, "")
    assert override.split("=")[0] in result.stderr
    assert os.listdir(tmp_path) == []


def test_options_win_over_a_recipe(invoke: Invoke, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('quantize = "int8"\noverrides = [["mlp", "f16"]]')
    args = ("--recipe", tmp_path / "mine.toml", "-q", "int4", "--override", "mlp.up=bf16")
    assert invoke("convert", checkpoint, "-o", tmp_path / "out", *args).exit_code == 0
    found = kinds(invoke, tmp_path / "out")
    assert found["self_attn.q_proj.weight"] == "int4"
    assert found["mlp.down_proj.weight"] == "f16"
    assert found["mlp.up_proj.weight"] == "bf16"
    assert invoke("convert", checkpoint, "-o", tmp_path / "int8", *args[:2]).exit_code == 0
    assert kinds(invoke, tmp_path / "int8")["self_attn.q_proj.weight"] == "int8"


def test_a_recipe_that_means_nothing_is_refused(invoke: Invoke, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('quantise = "int8"')
    result = invoke("convert", checkpoint, "-o", tmp_path / "out", "--recipe", tmp_path / "mine.toml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {tmp_path / 'mine.toml'}: quantise: ")
    assert os.listdir(tmp_path) == ["mine.toml"]


def test_strict_is_one_line(invoke: Invoke, tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "source")
    (source / "tokenizer.json").unlink()
    result = invoke("convert", source, "-o", tmp_path / "out", "--strict")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {source}: refused by --strict: has no tokenizer.json")
    assert result.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["source"]


def test_a_dry_run_says_what_would_be_written_to_the_byte(invoke: Invoke, checkpoint: Path, tmp_path: Path) -> None:
    args = ("convert", checkpoint, "-o", tmp_path / "out")
    result = invoke(*args, "--dry-run")
    assert (result.exit_code, result.stderr) == (0, "")
    assert os.listdir(tmp_path) == []
    header, *rows = result.stdout.splitlines()
    assert header.split() == ["kind", "why", "tensors", "weights", "size"]
    assert rows[0].startswith("int6  mixed: more bits save most divergence for their bytes here")
    assert any(
        row.startswith("6.52 bits per weight, 255 KB before, 104 KB after; packing takes at most") for row in rows
    )
    assert invoke(*args).exit_code == 0
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "out").iterdir()}
    announced = dict(row.split() for row in rows[-len(sizes) :])
    assert {name: int(number.replace(",", "")) for name, number in announced.items()} == sizes
    assert f"nothing was written; it would be {sum(sizes.values()):,} bytes, of " in result.stdout


def test_verbose_lists_each_tensor_with_the_reason(invoke: Invoke, checkpoint: Path, tmp_path: Path) -> None:
    args = ("convert", checkpoint, "-o", tmp_path / "out", "-q", "int4", "-v", "--override", "lm_head=f16")
    dry, wet = invoke(*args, "--dry-run"), invoke(*args)
    for result in (dry, wet):
        assert result.stdout.splitlines()[0].split() == ["tensor", "kind", "why", "shape", "size", "error"]
        (head,) = (line for line in result.stdout.splitlines() if line.startswith("lm_head.weight"))
        assert head.split()[1:4] == ["f16", "override", "lm_head=f16"]
    (down,) = (line for line in wet.stdout.splitlines() if line.startswith("model.layers.0.mlp.down_proj.weight"))
    assert 1e-4 < float(down.split()[-1]) < 1e-2


def test_reports_of_several_conversions(invoke: Invoke, checkpoint: Path, tmp_path: Path) -> None:
    args = ("convert", checkpoint, "-o", tmp_path / "v1.5", "-q", "int4,int8", "--report", tmp_path / "v1.5.json")
    assert invoke(*args).exit_code == 0
    assert set(os.listdir(tmp_path)) == {"v1.5-int4", "v1.5-int8", "v1.5-int4.json", "v1.5-int8.json"}
    for kind in ("int4", "int8"):
        found = json.loads((tmp_path / f"v1.5-{kind}.json").read_bytes())
        assert found["options"]["quantize"] == kind
        assert all(tensor["error"] is not None for tensor in found["tensors"])


def test_a_dry_run_writes_its_report(invoke: Invoke, checkpoint: Path, tmp_path: Path) -> None:
    result = invoke("convert", checkpoint, "-o", tmp_path / "out", "--dry-run", "--report", tmp_path / "plan.html")
    assert result.exit_code == 0
    assert os.listdir(tmp_path) == ["plan.html"]
    assert "nothing was packed" in (tmp_path / "plan.html").read_text()


@pytest.mark.parametrize(
    ("report", "words"),
    [
        ("report.txt", "ends in .json or .html"),
        ("missing/report.json", "is no folder"),
        ("out/report.json", "is no folder"),
        ("source/config.json", "belongs to a model"),
        (".", "ends in .json or .html"),
        ("recipe.json", "is another file of this command as well"),
        ("text.html", "is another file of this command as well"),
    ],
)
def test_a_report_that_cannot_be_written_is_told_before_any_work(
    invoke: Invoke, tmp_path: Path, report: str, words: str
) -> None:
    source = tiny.checkpoint(tmp_path / "source")
    (tmp_path / "text.html").write_text("Once upon a time. " * 1000)
    (tmp_path / "recipe.json").write_text("{}")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    read = ("--calibration", tmp_path / "text.html", "--recipe", tmp_path / "recipe.json")
    result = invoke("convert", source, "-o", tmp_path / "out", "--force", "--report", f"{tmp_path}/{report}", *read)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_help_groups_its_options(invoke: Invoke) -> None:
    text = invoke("convert", "--help").stdout
    headings = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == [
        "What to write:",
        "Which kinds:",
        "How codes are found:",
        "Where mixed spends bits:",
        "What is checked and told:",
        "Options:",
    ]
    assert all(option in text for option in ("--dry-run", "--report", "--strict", "--recipe", "--threads", "--debug"))
    assert "  SOURCE" not in text
    rows = [line.split() for line in text.splitlines()]
    for kind, bits in {name: f"{kind.bits:g}" for name, kind in KINDS.items()}.items():
        assert [kind, bits] in [row[:2] for row in rows]
    assert {row[0] for row in rows if row} >= set(METHODS)
    assert convert.METHODS == METHODS


def test_a_target_means_mixed(invoke: Invoke, checkpoint: Path, tmp_path: Path) -> None:
    result = invoke("convert", checkpoint, "-o", tmp_path / "out", "--target-size", "110KB")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "\nmixed: at most 110 KB, at least " in result.stdout
    assert set(kinds(invoke, tmp_path / "out").values()) == {"int5", "int6", "f32"}
    assert "-q mixed --target-size 110000\n" in invoke("inspect", tmp_path / "out").stdout
    listed = invoke("convert", checkpoint, "-o", tmp_path / "x", "--target-bpw", "7", "--dry-run", "-v").stdout
    assert "mixed: more bits save most divergence for their bytes here" in listed
    assert listed.splitlines()[0].endswith("  lost in int4")


@pytest.mark.usefixtures("model_cache")
def test_sensitivities_are_measured_where_that_is_asked_for(invoke: Invoke, checkpoint: Path, tmp_path: Path) -> None:
    result = invoke("convert", checkpoint, "-o", tmp_path / "out", "--sensitivities", "measured")
    assert result.exit_code == 0
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("mixed: "))
    assert line.startswith("mixed: at most 104 KB, at least 87 KB; sensitivities measured")
    assert "-q mixed --sensitivities measured\n" in invoke("inspect", tmp_path / "out").stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("-q", "int4", "--target-size", "1GB"), "--target-size is for --quantize mixed, not for int4"),
        (("-q", "int4", "--sensitivities", "measured"), "--sensitivities is for --quantize mixed, not for int4"),
        (("--bits", "8", "--target-bpw", "5"), "--target-bpw is for --quantize mixed, not for int8"),
        (("--target-bpw", "5", "--target-size", "1GB"), "target_size: there is a target_bpw already"),
        (("--target-size", "many"), "target_size: 'many' is no size such as 98MB"),
        (("--target-bpw", "nan"), "target_bpw: nan is no number of bits per weight"),
        (("--target-size", "1KB"), "target_size: 1,000 is too little: the least that "),
    ],
)
def test_targets_that_mean_nothing(
    invoke: Invoke, checkpoint: Path, tmp_path: Path, args: tuple[str, ...], words: str
) -> None:
    result = invoke("convert", checkpoint, "-o", tmp_path / "out", *args)
    assert result.exit_code in (1, 2)
    assert words in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_target_wins_over_a_recipe(invoke: Invoke, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('target_bpw = 30\noverrides = [["q_proj", "f16"]]\n')
    recipe = ("--recipe", tmp_path / "mine.toml", "--dry-run")
    shown = invoke("convert", checkpoint, "-o", tmp_path / "out", *recipe, "--target-size", "120KB").stdout
    assert "mixed: at most 120 KB" in shown
    assert "override q_proj=f16" in shown
    plain = invoke("convert", checkpoint, "-o", tmp_path / "out", *recipe, "-q", "int8").stdout
    assert "linear layer: int8 is asked for" in plain
    assert "mixed" not in plain


def test_dequantize_makes_a_checkpoint_that_packs_again(invoke: Invoke, packed: Path, tmp_path: Path) -> None:
    result = invoke("dequantize", packed, "-o", tmp_path / "unpacked")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{tmp_path / 'unpacked'}: bfloat16 checkpoint of {packed}\n"
    assert set(kinds(invoke, tmp_path / "unpacked").values()) == {"bf16"}
    assert (tmp_path / "unpacked/tokenizer.json").read_bytes() == (packed / "tokenizer.json").read_bytes()
    assert invoke("convert", tmp_path / "unpacked", "-o", tmp_path / "again").exit_code == 0
    assert invoke("dequantize", packed, "-o", tmp_path / "unpacked").exit_code == 1
    assert invoke("dequantize", packed, "-o", tmp_path / "unpacked", "--force").exit_code == 0


def test_methods(invoke: Invoke, checkpoint: Path, tmp_path: Path) -> None:
    result = invoke("convert", checkpoint, "-o", tmp_path / "rounded", "--method", "round", "-q", "int4,int8")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "--method round" in (tmp_path / "rounded-int8" / "README.md").read_text()
    assert invoke("verify", tmp_path / "rounded-int4").exit_code == 0
    assert "-q int4 --method round\n" in invoke("inspect", tmp_path / "rounded-int4").stdout
    result = invoke("convert", checkpoint, "-o", tmp_path / "out", "--method", "round", "--calibration", "builtin")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "none with method 'round'" in result.stderr


def test_calibration_is_reported(invoke: Invoke, checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"{number} is followed by {number + 1}." for number in range(400)))
    result = invoke("convert", checkpoint, "-o", tmp_path / "out", "--calibration", text)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "\ncalibrated on " in result.stdout
    assert "tokens of text.txt; error of outputs " in result.stdout
    assert invoke("verify", tmp_path / "out").exit_code == 0


def test_matrices_that_too_few_tokens_reach_are_said(
    invoke: Invoke, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curvature, "LEAST_ROWS", 1e9)
    text, report = tmp_path / "text.txt", tmp_path / "report.html"
    text.write_text(" ".join(map(str, range(2000))))
    result = invoke("convert", checkpoint, "-o", tmp_path / "out", "--calibration", text, "--report", report)
    said = re.search(
        r"\n(\d+) of (\d+) matrices met too few tokens .*: model\.layers\.0\.[a-z_.]+, \.\.\.\n", result.stdout
    )
    assert said
    assert said[1] == said[2]
    assert f"{said[1]} matrices that too few tokens reached: model.layers.0." in report.read_text()


def test_a_missing_text_is_a_failure_of_one_line(invoke: Invoke, checkpoint: Path, tmp_path: Path) -> None:
    result = invoke("convert", checkpoint, "-o", tmp_path / "out", "--calibration", tmp_path / "none.txt")
    assert result.exit_code == 2
    assert "none.txt" in result.stderr


@pytest.mark.real
def test_the_readme_shows_a_dry_run(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("SmolLM2-135M-Instruct").symlink_to(os.environ["QUANTKIT_TEST_MODEL"])
    _, after = (
        (Path(__file__).parents[2] / "README.md").read_text().split("$ quantkit convert SmolLM2-135M-Instruct -o", 1)
    )
    command, *shown = after[: after.index("[...]")].splitlines()
    found = invoke("convert", "SmolLM2-135M-Instruct", "-o", *shlex.split(command)).stdout.splitlines()
    assert found[: len(shown) - 1] == shown[:-1]
    assert found[len(shown) - 1].split(", of ")[0] == shown[-1].split(", of ")[0]  # how much is free differs
