"""The README's table of models, written from the table of families that quantkit runs.

    python examples/models_table.py

A family with golden logits of transformers' in `tests/golden` is compared with them, in one pass and token by token; CI
compares the same cases with transformers itself as well. `REAL` are those that it also runs with published weights.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path

from marks import write

from quantkit.models.gguf.tables import DIALECTS
from quantkit.models.registry import FAMILIES
from quantkit.models.registry.wrappers import WRAPPERS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
MARK = "models"
REAL = frozenset({"llama"})


def status(model_type: str) -> str:
    """Return how a family is checked."""
    golden = ["golden", "live"] if (ROOT / f"tests/golden/{model_type}.npz").is_file() else []
    return ", ".join([*golden, *(["real weights"] if model_type in REAL else [])])


def table() -> str:
    """Return the table's rows, and the multimodal models and GGUF's architectures below them, in Markdown."""
    rows = [f"| `{name}` | {family.known_as} | {status(name)} |" for name, family in FAMILIES.items()]
    head = ("| `model_type` | models | checked by |", "|---|---|---|")
    return "\n".join(
        (
            *head,
            *rows,
            "",
            listing("Of multimodal models the text part runs", WRAPPERS),
            "",
            listing("GGUF files of these architectures are read", DIALECTS),
        )
    )


def listing(what: str, names: Iterable[str]) -> str:
    """Return a paragraph of names."""
    text = f"{what}: {', '.join(f'`{name}`' for name in names)}."
    return textwrap.fill(text, 120, break_on_hyphens=False)


if __name__ == "__main__":
    write(README, MARK, table())
