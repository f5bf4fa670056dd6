"""The examples run: on a tiny checkpoint, and with what they need missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import tiny

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_quickstart_on_a_folder(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "tiny", max_position_embeddings=512)
    command = [sys.executable, EXAMPLES / "quickstart.py", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for part in ("Packed model", "int4", "6.52 bits per weight", "What is gravity?", "generation: "):
        assert part in done.stdout


def test_the_comparison_says_what_it_lacks(tmp_path: Path) -> None:
    script = (
        "import runpy, sys\nsys.modules['llama_cpp'] = None\nsys.argv[1:] = ['packed', 'model.gguf']\n"
        f"runpy.run_path({str(EXAMPLES / 'compare_llama_cpp.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("llama-cpp-python is not installed")
    assert "CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python" in done.stderr
