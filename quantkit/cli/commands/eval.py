"""`quantkit eval`: perplexity of a text, and the distance from a reference model, of one model or of several."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from quantkit.cli.commands.eval_output import as_json, lines, table_of
from quantkit.cli.options import Command, kv_option, path, threads_option
from quantkit.cli.streams import echo, read_text
from quantkit.errors import OptionError

if TYPE_CHECKING:
    from quantkit.generation.text.tokenizer import Tokenizer


@click.command("eval", cls=Command, short_help="Measure perplexity, and divergence from a reference.")
@click.argument("models", metavar="MODEL...", type=path, nargs=-1, required=True)
@click.option("-f", "--file", required=True, type=path, help="UTF-8 text to read; - is stdin.")
@click.option(
    "-c", "--ctx-size", default=512, show_default=True, type=click.IntRange(min=8), help="Tokens of a window."
)
@click.option("--chunks", type=int, default=-1, show_default=True, help="Windows to read; -1 reads all.")
@click.option("--reference", type=path, metavar="DIR", help="Model to compare with, read in the same pass.")
@kv_option
@threads_option
@click.option("--json", "json", is_flag=True, help="Print JSON.")
def command(
    models: tuple[Path, ...],
    file: Path,
    ctx_size: int,
    chunks: int,
    reference: Path | None,
    kv_dtype: str,
    threads: int | None,
    json: bool,
) -> None:
    """Measure how well each MODEL predicts a text, as llama-perplexity does: the second half of each window is scored.

    What spells a special token in the text, such as <unk>, is read as ordinary characters.

    With --reference, usually the checkpoint that the models were packed from, also the Kullback-Leibler divergence (KL,
    in nats) from its predictions, and the change of the probability of the right token (Δp). A checkpoint that is not
    packed is run in f32 arithmetic. The reference keeps its KV cache in 16 bits: with a checkpoint as its own
    reference, that is what --kv-bits 8 costs. (Packed weights take rounded activations, which the smallest change
    rounds differently: a packed model is no measure of small changes.)

    Several models take turns with each window, and the reference reads it once for all. Their tokenizers must agree.
    Behind ± is the standard error, for which tokens count as independent.

    \b
    --json prints an object for one model, an array of them for several:
      model, model_size, reference    paths; bytes of the model's weights
      file, context, windows, tokens  what was read; how many tokens were scored
      kv_dtype, threads
      perplexity                      {"value", "error"}, as what has ± elsewhere
      divergence                      null without a reference
        reference_perplexity, perplexity_ratio, perplexity_difference,
        log_perplexity_ratio, correlation (of the losses)
        mean_kl, kl_min, kl_max, kl_quantiles ("0.001" to "0.999")
        mean_dp, rms_dp, dp_min, dp_max, dp_quantiles
        same_top                      share of tokens with the same likeliest
    """
    from quantkit.cli.bus_error import explain_bus_errors
    from quantkit.cli.progress import Bar
    from quantkit.evaluation.quality import compare
    from quantkit.generation.loading import load, load_model

    text = read_text(file)
    explain_bus_errors()
    opened = [load(model, threads=threads, context=ctx_size, kv_dtype=kv_dtype) for model in models]
    tokens = _tokens(text, models, [tokenizer for _, tokenizer in opened])
    tokenizer = opened[0][1]
    with Bar("evaluating") as bar:
        found = compare(
            [model for model, _ in opened],
            tokens,
            ctx_size,
            chunks,
            bos_token_id=tokenizer.bos_token_id if tokenizer.adds_bos else None,
            reference=load_model(reference, threads=threads, context=ctx_size) if reference else None,
            progress=lambda done, total, value: bar.update(done, total, f"PPL {value:.4f}"),
        )
    if json:
        asked = {"reference": reference and str(reference), "file": str(file), "kv_dtype": kv_dtype}
        about = [
            {"model": str(name), "model_size": model.nbytes, **asked, "threads": model.threads}
            for name, (model, _) in zip(models, opened, strict=True)
        ]
        echo(as_json(about, found))
    elif len(found) == 1:
        for line in lines(found[0]):
            echo(line)
    else:
        echo(table_of(models, [model.nbytes for model, _ in opened], found))


def _tokens(text: str, models: tuple[Path, ...], tokenizers: list[Tokenizer]) -> list[int]:
    """Return the text's tokens, on which the models must agree."""
    first, *others = (
        (tokenizer.adds_bos, tokenizer.encode(text, split_special_tokens=True)) for tokenizer in tokenizers
    )
    for model, other in zip(models[1:], others, strict=True):
        if other != first:
            raise OptionError(f"{model}: reads the text as other tokens than {models[0]}: they cannot be compared")
    return first[1]
