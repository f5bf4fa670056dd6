"""The README's table of inputs, written from the table of schemes that quantkit reads and from their tests.

    python examples/inputs_table.py

The tests of every scheme decode bytes that were typed by hand; those marked `live`, which CI runs, compare with what a
library that writes the scheme decodes. `REAL` are the schemes that CI writes SmolLM2 in, and runs.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from marks import write

from quantkit.formats.schemes import RENAMED, SCHEMES
from quantkit.formats.schemes.scheme import Scheme

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
MARK = "inputs"
REAL = frozenset({"AWQ", "bitsandbytes", "compressed-tensors", "FP8", "GPTQ", "MLX"})
PLAIN = (
    ("safetensors", "", "F32, F16, BF16; in one file or in shards", "golden, live, real weights"),
    ("GGUF", "", "every type that the `gguf` package de-quantizes; whole or split", "golden, live, real weights"),
)
"""Rows of what is no scheme."""
HEAD = ("| input | `quant_method` | what of it | checked by |", "|---|---|---|---|")


def status(scheme: type[Scheme]) -> str:
    """Return how a scheme is checked."""
    *folders, module = scheme.__module__.removeprefix("quantkit.").split(".")
    tests = (ROOT / "tests" / Path(*folders) / f"test_{module}.py").read_text()
    live = ["live"] if "@pytest.mark.live" in tests else []
    return ", ".join(["typed bytes", *live, *(["real weights"] if scheme.known_as in REAL else [])])


def table() -> str:
    """Return the table in Markdown."""
    names: dict[type[Scheme], list[str]] = defaultdict(list)
    for name, scheme in SCHEMES.items():
        names[scheme].append(f"`{name}`")
    rows = [(scheme.known_as, ", ".join(names[scheme]), scheme.variants, status(scheme)) for scheme in names]
    renamed = [("AutoRound", ", ".join(f"`{name}`" for name in RENAMED), "what it stores as GPTQ or AWQ", "as these")]
    return "\n".join((*HEAD, *(f"| {' | '.join(row)} |" for row in (*PLAIN, *sorted(rows + renamed, key=str)))))


if __name__ == "__main__":
    write(README, MARK, table())
