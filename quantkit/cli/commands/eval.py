"""`quantkit eval`: perplexity of a text, and the distance from a reference model."""

from __future__ import annotations

from pathlib import Path

import click

from quantkit.cli.options import Command, kv_option, model_argument, path, threads_option
from quantkit.cli.streams import echo, read_text


@click.command("eval", cls=Command, short_help="Measure perplexity, and divergence from a reference.")
@model_argument
@click.option(
    "-f",
    "--file",
    required=True,
    type=path,
    help="UTF-8 text to read; - is stdin.",
)
@click.option(
    "-c", "--ctx-size", default=512, show_default=True, type=click.IntRange(min=8), help="Tokens of a window."
)
@click.option("--chunks", type=int, default=-1, show_default=True, help="Windows to read; -1 reads all.")
@click.option("--reference", type=path, metavar="DIR", help="Model to compare with, read in the same pass.")
@kv_option
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    model: Path,
    file: Path,
    ctx_size: int,
    chunks: int,
    reference: Path | None,
    kv_dtype: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure how well MODEL predicts a text, as llama-perplexity does: the second half of each window is scored.

    What spells a special token in the text, such as <unk>, is read as ordinary characters.

    With --reference, usually the checkpoint that MODEL was packed from, also the Kullback-Leibler divergence from its
    predictions. A checkpoint that is not packed is run in f32 arithmetic. The reference keeps its KV cache in 16 bits:
    with a checkpoint as its own reference, that is what --kv-bits 8 costs. (Packed weights take rounded activations,
    which the smallest change rounds differently: a packed model is no measure of small changes.)
    """
    from quantkit.cli.bus_error import explain_bus_errors
    from quantkit.cli.progress import Bar
    from quantkit.evaluation.quality import perplexity
    from quantkit.generation.loading import load, load_model

    text = read_text(file)
    explain_bus_errors()
    loaded, tokenizer = load(model, threads=threads, context=ctx_size, kv_dtype=kv_dtype)
    with Bar("evaluating") as bar:
        found = perplexity(
            loaded,
            tokenizer.encode(text, split_special_tokens=True),
            ctx_size,
            chunks,
            bos_token_id=tokenizer.bos_token_id if tokenizer.adds_bos else None,
            reference=load_model(reference, threads=threads, context=ctx_size) if reference else None,
            progress=lambda done, total, value: bar.update(done, total, f"PPL {value:.4f}"),
        )
    if as_json:
        import dataclasses
        import json

        echo(json.dumps(dataclasses.asdict(found), indent=2))
        return
    lines = [
        ("perplexity", found.perplexity),
        ("tokens scored", f"{found.tokens} in {found.windows} windows of {found.context}"),
    ]
    if other := found.divergence:
        lines += [
            ("reference perplexity", other.reference_perplexity),
            ("perplexity ratio", other.perplexity_ratio),
            ("mean KL divergence", f"{other.mean_kl.value:.5f} ± {other.mean_kl.error:.5f}"),
            *((f"KL quantile {share:.1%}", f"{value:.5f}") for share, value in other.kl_quantiles.items()),
            ("KL maximum", f"{other.kl_max:.5f}"),
            ("same top token", f"{other.same_top.value:.2%} ± {other.same_top.error:.2%}"),
        ]
    for name, value in lines:
        echo(f"{name:22}{value}")
