"""`quantkit eval`: perplexity of a text, and the distance from a reference model, of one model or of several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantkit.cli.commands.eval_output import as_json, lines, table_of
from quantkit.cli.models import local_path
from quantkit.cli.options import Command, kv_option, model_name, path, plot_option, threads_option
from quantkit.cli.streams import echo, printable, read_text
from quantkit.errors import OptionError

if TYPE_CHECKING:
    from quantkit.engine.model import Model
    from quantkit.evaluation.scores import Pair


@click.command("eval", cls=Command, short_help="Measure perplexity, and divergence from a reference.")
@click.argument("models", metavar="MODEL...", type=model_name, nargs=-1, required=True)
@click.option("-f", "--file", required=True, type=path, help="UTF-8 text to read; - is stdin.")
@click.option(
    "-c", "--ctx-size", default=512, show_default=True, type=click.IntRange(min=8), help="Tokens of a window."
)
@click.option("--chunks", type=int, default=-1, show_default=True, help="Windows to read; -1 reads all.")
@click.option("--reference", type=model_name, metavar="DIR", help="Model to compare with, read in the same pass.")
@click.option("--parts", is_flag=True, help="Show what weights, KV cache and activations lose, each apart.")
@kv_option
@threads_option
@click.option("--json", "json", is_flag=True, help="Print JSON.")
@plot_option("the distribution of divergences")
def command(
    models: tuple[str, ...],
    file: Path,
    ctx_size: int,
    chunks: int,
    reference: str | None,
    parts: bool,
    kv_dtype: str,
    threads: int | None,
    json: bool,
    plot: Path | None,
) -> None:
    """Measure how well each MODEL predicts a text, as llama-perplexity does: the second half of each window is scored.

    What spells a special token in the text, such as <unk>, is read as ordinary characters.

    With --reference, usually the checkpoint that the models were packed from, also the Kullback-Leibler divergence (KL,
    in nats) from its predictions, and the change of the probability of the right token (Δp). A checkpoint that is not
    packed is run in f32 arithmetic. The reference keeps its KV cache in 16 bits: with a checkpoint as its own
    reference, that is what --kv-bits 8 costs. (Packed weights take rounded activations, which the smallest change
    rounds differently: a packed model is no measure of small changes.)

    Several models take turns with each window, and the reference reads it once for all. Their tokenizers must agree,
    and so must the reference's if it has one. Behind ± is the standard error, for which tokens count as independent.

    \b
    --parts compares one packed model with its reference step by step, in a row each:
      weights      its weights in f32 arithmetic (4 bytes of memory each), KV cache of f32
      KV cache     the same with the KV cache of --kv-bits, compared with the row above
      activations  the model as it runs, compared with the row above
      together     the model as it runs, compared with the reference

    \b
    --json prints an object for one model, an array of them for several:
      model, model_size, reference    names; bytes of the model's weights
      part                            with --parts, a name from above
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
    from quantkit.evaluation.plot import check_plot
    from quantkit.evaluation.quality import evaluations
    from quantkit.evaluation.scores import score

    if reference is None and (parts or plot):
        raise click.UsageError("--parts and --plot compare: they need --reference")
    if parts and len(models) > 1:
        raise click.UsageError("--parts takes one model")
    if plot:
        check_plot(plot, [file, *map(Path, [*models, reference or file])])
    text = read_text(file)
    explain_bus_errors()
    folders = [local_path(model) for model in models]
    beside = local_path(reference) if reference else None
    tokens, bos_token_id = _tokens(text, models, folders)
    if reference and beside:
        _check_reference(text, reference, beside, folders[0])
    options = {"threads": threads, "context": ctx_size, "kv_dtype": kv_dtype}
    opened, pairs, names = _open(folders, beside, parts, options)
    with Bar("evaluating") as bar:

        def show(done: int, total: int, perplexity: float) -> None:
            bar.update(done, total, f"PPL {perplexity:.4f}")

        scores = score(opened, pairs, tokens, ctx_size, chunks, bos_token_id=bos_token_id, progress=show)
    found, sizes = evaluations(scores), [model.nbytes for model in opened[-len(models) :]]
    if json:
        asked = {"reference": reference, "file": str(file), "kv_dtype": kv_dtype, "threads": opened[0].threads}
        heads = [{"model": model, "model_size": size, **asked} for model, size in zip(models, sizes, strict=True)]
        echo(as_json([heads[0] | {"part": name} for name in names] or heads, found))
    elif len(found) == 1:
        for line in lines(found[0]):
            echo(line)
    else:
        echo(table_of("part", names, None, found) if parts else table_of("model", models, sizes, found))
    if plot:
        from quantkit.evaluation.divergence_plot import draw_divergences

        draw_divergences(plot, [printable(name) for name in names or models], scores)


def _open(
    folders: Sequence[Path], reference: Path | None, parts: bool, options: dict[str, Any]
) -> tuple[list[Model], list[Pair], list[str]]:
    """Return the models that read the text, the reference first, what is compared, and with `parts` its names."""
    from quantkit.evaluation.parts import PARTS, open_parts
    from quantkit.evaluation.scores import Pair
    from quantkit.generation.loading import load_model

    if parts and reference:
        return open_parts(folders[0], reference, **options), [*PARTS.values()], [*PARTS]
    first = [load_model(reference, **{**options, "kv_dtype": "int16"})] if reference else []
    opened = first + [load_model(folder, **options) for folder in folders]
    return opened, [Pair(0, place) for place in range(1, len(opened))] if reference else [], []


def _tokens(text: str, models: Sequence[str], folders: Sequence[Path]) -> tuple[list[int], int | None]:
    """Return the text's tokens, on which the models must agree, and the BOS if one belongs before each window."""
    from quantkit.generation.loading import load_tokenizer

    tokenizers = [load_tokenizer(folder) for folder in folders]
    first, *others = (
        (tokenizer.encode(text, split_special_tokens=True), tokenizer.bos_token_id if tokenizer.adds_bos else None)
        for tokenizer in tokenizers
    )
    for model, other in zip(models[1:], others, strict=True):
        if other != first:
            raise OptionError(f"{model}: reads the text as other tokens than {models[0]}: they cannot be compared")
    return first


def _check_reference(text: str, reference: str, folder: Path, model: Path) -> None:
    """Raise `OptionError` for a reference that has a tokenizer, and reads the text as other tokens than a model."""
    from quantkit import formats
    from quantkit.generation.loading import load_tokenizer

    if "tokenizer.json" in formats.open(folder).files:
        ours, theirs = (
            load_tokenizer(each).encode(text, add_special_tokens=False, split_special_tokens=True)
            for each in (model, folder)
        )
        if ours != theirs:
            raise OptionError(f"{reference}: reads the text as other tokens than {model}: they cannot be compared")
