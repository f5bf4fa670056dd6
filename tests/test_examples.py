"""The examples run: on a tiny checkpoint, and with what they need missing. The README shows what was measured."""

from __future__ import annotations

import contextlib
import json
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from marks import rewrite

import tiny
from hub_server import HubServer
from quantkit import convert
from quantkit.formats.packed import verify
from quantkit.formats.schemes import SCHEMES
from quantkit.models.registry import FAMILIES

EXAMPLES = Path(__file__).parents[1] / "examples"


def quickstart(model: Path, folder: Path) -> str:
    """What `quickstart.py MODEL` says, started in a folder."""
    command: list[str | Path] = [sys.executable, EXAMPLES / "quickstart.py", model]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder, errors="replace")
    assert done.returncode == 0, done.stderr
    assert "generation: " in done.stderr
    return done.stdout


def test_quickstart_packs_a_model_once(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "tiny", max_position_embeddings=512)
    first, second = quickstart(folder, tmp_path), quickstart(folder, tmp_path)
    assert "$ quantkit convert tiny -o tiny-packed\n" in first
    assert "6.52 bits per weight" in first
    assert second == first[first.index("\n$ quantkit run tiny-packed -p 'What is gravity?") :]
    assert (tmp_path / "tiny-packed/quantkit.json").is_file()

    tiny.checkpoint(folder, max_position_embeddings=512, seed=1)
    assert "$ quantkit convert tiny -o tiny-packed --force\n" in quickstart(folder, tmp_path)


def test_quickstart_prints_a_command_that_runs(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "tiny", max_position_embeddings=512)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    program, *arguments = shlex.split(quickstart(folder, elsewhere).splitlines()[-1])
    assert Path(program).name == "quantkit"
    assert subprocess.run([program, *arguments], cwd=elsewhere, capture_output=True).returncode == 0


@pytest.mark.parametrize("more", [[], ["--vocabulary", "1000"]])
def test_what_is_between_passes_is_measured(tmp_path: Path, more: list[str]) -> None:
    convert(tiny.checkpoint(tmp_path / "tiny"), tmp_path / "int4", quantize="int4")
    command: list[str | Path] = [sys.executable, EXAMPLES / "measure_choice.py", tmp_path / "int4", "--tokens", "3"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    names, *rows = done.stdout.splitlines()
    assert names.startswith(f"of {'1,000' if more else tiny.VOCAB_SIZE} tokens")
    assert len(rows) == 7
    assert all(int(cell) > 0 for row in rows for cell in row.split()[-2:])


def test_a_conversion_is_measured(tmp_path: Path) -> None:
    small = {"vocab_size": 320, "num_experts": 8, "hidden_size": 128, "moe_intermediate_size": 64}
    command: list[str | Path] = [sys.executable, EXAMPLES / "measure_conversion.py", tmp_path, "--gigabytes", "0.02"]
    options = ["--config", json.dumps(small), "--quantize", "int4,int8", "--dense"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert 15e6 < found["source_bytes"] <= 20e6
    assert found["source_bytes"] > found["largest_tensor"] > 1e6
    assert min(found.values()) >= 0
    for kind in ("int4", "int8"):
        assert len(verify(tmp_path / f"packed-{kind}")) > 24 * found["layers"]


def test_quickstart_names_a_model_of_the_hub(hub: HubServer, tmp_path: Path) -> None:
    hub.add("HuggingFaceTB/SmolLM2-135M-Instruct", tiny.checkpoint(tmp_path / "tiny", max_position_embeddings=512))
    command: list[str | Path] = [sys.executable, EXAMPLES / "quickstart.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, errors="replace")
    assert done.returncode == 0, done.stderr
    assert "$ quantkit convert HuggingFaceTB/SmolLM2-135M-Instruct -o SmolLM2-135M-Instruct-packed\n" in done.stdout
    assert "PyPI" not in done.stdout


def test_quickstart_passes_a_failure_on(tmp_path: Path) -> None:
    command: list[str | Path] = [sys.executable, EXAMPLES / "quickstart.py", tmp_path / "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_the_comparison_says_what_it_lacks(tmp_path: Path) -> None:
    script = (
        "import runpy, sys\nsys.modules['llama_cpp'] = None\nsys.argv[1:] = ['packed', 'model.gguf']\n"
        f"runpy.run_path({str(EXAMPLES / 'compare_llama_cpp.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("llama-cpp-python is not installed")
    assert "CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python" in done.stderr


def test_the_comparison_runs_steps_behind_the_same_tokens_again_and_again(tmp_path: Path) -> None:
    convert(tiny.checkpoint(tmp_path / "tiny"), tmp_path / "packed")
    program = runpy.run_path(str(EXAMPLES / "compare_llama_cpp.py"))
    with (
        contextlib.closing(program["Quantkit"](tmp_path / "packed", threads=1)) as contender,
        contender.ready(batch=2, depth=200, room=50) as run,  # the context of 256 does not hold two turns
    ):
        assert all(run([[[5] * 50] * 2]) > 0 for _ in range(3))


def table_program() -> dict[str, Any]:
    """What `readme_table.py` defines."""
    return runpy.run_path(str(EXAMPLES / "readme_table.py"))


def test_the_readme_lists_every_family() -> None:
    program = runpy.run_path(str(EXAMPLES / "models_table.py"))
    readme = program["README"].read_text()
    assert rewrite(readme, program["MARK"], program["table"]()) == readme, "run examples/models_table.py"
    assert all("golden" in program["status"](family) for family in FAMILIES)


def test_the_readme_lists_every_input() -> None:
    program = runpy.run_path(str(EXAMPLES / "inputs_table.py"))
    readme = program["README"].read_text()
    assert rewrite(readme, program["MARK"], program["table"]()) == readme, "run examples/inputs_table.py"
    assert {scheme.known_as for scheme in SCHEMES.values()} >= program["REAL"]
    assert all("live" in program["status"](scheme) for scheme in SCHEMES.values())


@pytest.mark.parametrize(("file", "text"), [("README", "table"), ("FRONT_PAGE", "headlines")])
def test_the_readmes_show_what_was_measured(file: str, text: str) -> None:
    program = table_program()
    results = json.loads(program["RESULTS"].read_text())
    readme = program[file].read_text()
    assert rewrite(readme, program["MARK"], program[text](results)) == readme, "run examples/readme_table.py"


def test_the_table_has_the_rows_that_were_measured() -> None:
    program = table_program()
    short = program["ROWS"][0]
    models: dict[str, dict[str, Any]] = {
        "smollm2-int4": {
            "conditions": {
                "processor": "A CPU",
                "cores": 2,
                "instruction_set": "avx2",
                "read_gbs": 33.2,
                "turns": 5,
            },
            "figures": {
                short.how: {"pp512": {"quantkit": 1474.4, "llama.cpp": 671.0, "ratio": 2.197}},
                "run -p Hello -n 1": {"warm": {"seconds": 0.8123}},
            },
        }
    }
    results = {"avx2": models}
    assert program["table"](results).splitlines() == [
        "Medians of 5 turns, on 2 cores of A CPU (avx2) that read 33.2 GB/s meanwhile.",
        "",
        "| model | what | quantkit | llama.cpp | ratio | how |",
        "|---|---|--:|--:|--:|---|",
        f"| SmolLM2-135M int4 | prompt of 512 tokens | 1,474 tokens/s | 671 tokens/s | 2.20 | `{short.how}` |",
        "| SmolLM2-135M int4 | warm start of `run` to the first token | 0.812 s |  |  | `run -p Hello -n 1` |",
    ]
    assert program["headlines"](results).splitlines()[2:] == [
        "| model | what | quantkit | llama.cpp | ratio |",
        "|---|---|--:|--:|--:|",
        "| SmolLM2-135M int4 | prompt of 512 tokens | 1,474 tokens/s | 671 tokens/s | 2.20 |",
    ]
    same = models["smollm2-int4"]["conditions"]
    models["smollm2-int8"] = {"conditions": same | {"read_gbs": 40.0}, "figures": {}}
    assert "that read 33.2 to 40 GB/s meanwhile" in program["table"](results)
    models["smollm2-int8"] = {"conditions": same | {"processor": "Another"}, "figures": {}}
    assert "SmolLM2-135M int8: medians of 5 turns, on 2 cores of Another" in program["table"](results)
    one, other = program["table"]({"generic": models, "avx2": models}).split("\n\nSmolLM2-135M int4: medians")
    assert one.splitlines()[1:] == other.splitlines()[1:]


def test_a_table_goes_between_its_marks() -> None:
    begin, end = "<!-- here: begin -->", "<!-- here: end -->"
    assert rewrite(f"a\n{begin}\nold\n{end}\nb", "here", "new") == f"a\n{begin}\nnew\n{end}\nb"
    with pytest.raises(SystemExit, match="lacks the marks"):
        rewrite(f"a\n{begin}\nold", "here", "new")


def test_the_readme_shows_what_quality_was_measured() -> None:
    program = runpy.run_path(str(EXAMPLES / "quality_table.py"))
    readme = program["README"].read_text()
    found = program["tables"](json.loads(program["RESULTS"].read_text()))
    assert rewrite(readme, program["MARK"], found) == readme, "run examples/quality_table.py"


def test_equal_quality_takes_the_fastest_folder_that_is_as_good() -> None:
    program = runpy.run_path(str(EXAMPLES / "quality_table.py"))

    def row(program: str, name: str, size: float, kl: float, speed: float) -> dict[str, Any]:
        return {"program": program, "name": name, "bytes": size, "mean_kl": kl, "pp512": 10 * speed, "tg64": speed}

    rows = [
        row("quantkit", "small", 80, 0.05, 400.0),
        row("quantkit", "large", 100, 0.01, 300.0),
        row("llama.cpp", "Q4", 105, 0.056, 200.0),
        row("llama.cpp", "Q8", 160, 0.02, 150.0),
        row("llama.cpp", "F16", 300, 0.0, 80.0),
    ]
    assert list(program["equal_quality"](rows)) == [
        ["Q4", "small", "76%", "0.0500 / 0.0560", "2.00x", "2.00x"],
        ["Q8", "large", "62%", "0.0100 / 0.0200", "2.00x", "2.00x"],
    ]
