"""The model card: README.md of a packed folder, with what model hubs read of it at its top.

It says where the model comes from, how it was packed, what that cost, and how it is run. It depends on the checkpoint
and the options alone, and its length on no error, so that the size of a folder is known before it is written. Names
come from strangers and are shown as code, with nothing in them that could end it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from quantkit.quantization.report import KindReport, TensorReport, summed
from quantkit.quantization.report.text import shown

if TYPE_CHECKING:
    from quantkit.quantization.plan import Plan

KEPT_FIELDS = ("license", "license_name", "license_link", "language", "pipeline_tag")
"""What a checkpoint's own card says that is true of the packed model as well."""
SMALLEST_ERROR = 1e-99
"""Smaller ones are shown as 0: their exponents have another length."""
TEXT = """\
{front_matter}
# {name}, packed to {bits:.2f} bits per weight

The weights of {name} in blocks that quantkit {version} runs on a CPU, straight from the file.
In this folder:

```sh
quantkit run . -p "What is the capital of France?"
quantkit bench .                # tokens per second
quantkit inspect .              # tensors, kinds, sizes, errors
quantkit verify .               # checksums
quantkit dequantize . -o ../unpacked
```

## How it was made

```sh
{command}
```

| kind | tensors | weights | bytes | mean error | largest error |
|---|--:|--:|--:|--:|--:|
{rows}

{bits:.2f} bits per weight; {before:,} bytes of tensors before, most of them {dtype}, {after:,} after. An error is the
sum of a tensor's squared errors over that of its squared weights; a kind's mean weighs tensors by their size.
`quantkit.json` has the errors of all tensors, the options and checksums.
{left_out}"""


def card(plan: Plan, tensors: Sequence[TensorReport]) -> bytes:
    """Return README.md of a packed folder; errors that are not known yet count as 0."""
    from importlib.metadata import version  # slow to import, and `run` does without

    source = plan.about["source"]
    after = sum(row.nbytes for row in tensors)
    return TEXT.format(
        front_matter=_front_matter(plan),
        name=_code(source["name"]),
        version=version("quantkit"),
        command=_line(_command(plan)),
        rows="\n".join(_row(row) for row in summed(tensors, by_reason=False)),
        bits=8 * after / sum(row.weights for row in tensors),
        before=plan.source.nbytes,
        dtype=source["dtype"],
        after=after,
        left_out=_left_out(plan),
    ).encode()


def _command(plan: Plan) -> str:
    """Return the command that packs the source in the same way."""
    name = plan.about["source"]["name"]
    return shlex.join(["quantkit", "convert", name, "-o", "DIR", *plan.recipe.arguments, *method_arguments(plan.about)])


def method_arguments(about: Mapping[str, Any]) -> list[str]:
    """Return the arguments of `quantkit convert` that say how codes were found, by what quantkit.json says of it."""
    if "calibration" in about:
        return ["--calibration", str(about["calibration"].get("text"))]
    if "imatrix" in about:
        return ["--imatrix", str(about["imatrix"].get("file"))]
    return ["--method", "round"] if about.get("method") == "round" else []


def _row(row: KindReport) -> str:
    errors = (error or 0.0 for error in (row.mean_error, row.largest_error))
    shown = " | ".join(f"{error if error > SMALLEST_ERROR else 0.0:.2e}" for error in errors)
    return f"| {row.kind} | {row.tensors:,} | {row.weights:,} | {row.nbytes:,} | {shown} |"


def _left_out(plan: Plan) -> str:
    if not plan.notices:
        return ""
    said = [_without_path(message, plan) for message in plan.notices]
    return "\n## What differs from the source\n\n" + "".join(f"- {_code(message)}\n" for message in said)


def _without_path(message: str, plan: Plan) -> str:
    """Return a message that says nothing of where the source lies on this machine."""
    path, name = str(plan.source.path), plan.about["source"]["name"]
    return message.removeprefix(f"{path}: ").replace(f"{path}/", "").replace(path, name)


def _front_matter(plan: Plan) -> str:
    """Return the card's fields for model hubs. A value in double quotes, as JSON has it, is YAML too."""
    name, found = plan.about["source"]["name"], plan.card_fields
    fields: dict[str, Any] = {key: found[key] for key in KEPT_FIELDS if key in found}
    base = name.partition(":")[0] if "/" in name else found.get("base_model")  # the hub's name of a model has a slash
    fields |= {"base_model": base, "base_model_relation": "quantized"} if base else {}
    fields |= {"library_name": "quantkit", "tags": ["quantkit", plan.recipe.quantize]}
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
    return "\n".join(["---", *lines, "---\n"])


def _code(text: str) -> str:
    """Return a text as code of markdown, in one line."""
    return f"`{_line(text)}`"


def _line(text: str) -> str:
    """Return a text in which no character ends a line or a span of code."""
    return shown(text).replace("`", r"\u0060")
