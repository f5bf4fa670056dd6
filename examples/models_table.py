"""The README's table of models, written from the table of families that quantkit runs.

    python examples/models_table.py

Every family has golden logits of transformers' in `tests/golden`, which the tests compare with, in one pass and token
by token; CI compares with transformers itself as well. `REAL` are those that it also runs with published weights.
"""

from __future__ import annotations

from pathlib import Path

from quantkit.models.registry import FAMILIES

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- models: begin -->", "<!-- models: end -->"
REAL = frozenset({"llama"})


def table() -> str:
    """Return the table's rows, in Markdown."""
    rows = [
        f"| `{model_type}` | {family.known_as} | golden, live{', real weights' if model_type in REAL else ''} |"
        for model_type, family in FAMILIES.items()
    ]
    return "\n".join(("| `model_type` | models | checked by |", "|---|---|---|", *rows))


def rewrite(readme: str) -> str:
    """Return the README with the table of today."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(rewrite(README.read_text()))
