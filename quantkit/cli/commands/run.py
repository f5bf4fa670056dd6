"""`quantkit run`: answer a prompt, on stdout, as it is generated."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantkit.cli.models import show
from quantkit.cli.options import (
    Command,
    kv_option,
    mmap_option,
    model_argument,
    numa_option,
    path,
    text,
    threads_option,
)
from quantkit.cli.progress import Bar
from quantkit.cli.sampling import choose_sampling, sampling_options
from quantkit.cli.streams import echo, echo_answer, read_text
from quantkit.errors import OptionError

if TYPE_CHECKING:
    from quantkit.engine.model import Model
    from quantkit.generation.stream import GenerationResponse
    from quantkit.generation.text.tokenizer import Tokenizer
    from quantkit.quantization.report import Progress


def _json_object(ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, Any] | None:
    if value is None:
        return None
    import json

    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"not JSON: {error}", ctx, param) from None
    if not isinstance(found, dict):
        raise click.BadParameter("not a JSON object", ctx, param)
    return found


@click.command("run", cls=Command, short_help="Answer a prompt.")
@model_argument
@click.option("-p", "--prompt", type=text, help="The prompt; - reads it from stdin.")
@click.option("-f", "--file", type=path, help="Read the prompt from a file.")
@click.option("-sys", "--system-prompt", type=text, help="System message of the conversation.")
@click.option(
    "-n",
    "--max-tokens",
    "--predict",
    default=256,
    show_default=True,
    help="Tokens to generate at most; -1 fills the context.",
)
@sampling_options
@click.option("--stop", multiple=True, type=text, help="End before this text; may be given several times.")
@click.option(
    "--speculate",
    "--draft-max",
    "--num-draft-tokens",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Draft up to N tokens from the text so far and check them in one pass: the same answer, faster where it "
    "repeats what was said; 16 is a good choice  [default: off]",
)
@click.option("-c", "--ctx-size", type=int, help="Tokens of the context  [default: what the model was made for]")
@kv_option
@threads_option
@numa_option
@mmap_option
@click.option(
    "--chat-template-kwargs",
    metavar="JSON",
    callback=_json_object,
    help="Further variables of the chat template: '{\"enable_thinking\": false}' for Qwen3.",
)
@click.option("--ignore-chat-template", is_flag=True, help="Continue the prompt as it is.")
@click.option("--ignore-eos", is_flag=True, help="Go on after the end of the text.")
@click.option("--display-prompt/--no-display-prompt", help="Print the prompt before the answer.", show_default=True)
def command(model: str, prompt: str | None, file: Path | None, **options: Any) -> None:
    """Answer a prompt with MODEL.

    A model that has a chat template gets the prompt as a user's message. A checkpoint that is not packed is packed
    first, once, as `quantkit convert` does it; the packed model is kept in the user's cache.

    Tokens are sampled as the model's makers recommend, else as llama.cpp does by default; --temp 0 takes the likeliest.
    The same command gives the same answer, --seed another one; the lines behind the answer name all that decided it.

    On a terminal, control characters in an answer are spelled out, as \\x1b; a pipe or a file gets them as they are.
    """
    asked = _prompt(prompt, file)
    if not options["ignore_chat_template"]:
        from quantkit.generation.text.template_process import start_early

        start_early()
    loaded, tokenizer = _load(model, options)

    from quantkit.generation.stream import stream_generate

    arguments, sampling = choose_sampling(tokenizer, options)
    bar, last = Bar("reading the prompt"), None
    responses = stream_generate(
        loaded,
        tokenizer,
        **_conversation(tokenizer, asked, options),
        **arguments,
        max_tokens=options["max_tokens"],
        stop=options["stop"],
        ignore_eos=options["ignore_eos"],
        speculate=options["speculate"],
        progress=bar.update,
    )
    if options["display_prompt"]:
        echo_answer(asked)
    try:
        for last in responses:
            bar.close()
            echo_answer(last.text)
    finally:
        bar.close()
        if last:
            echo_answer("\n")
            echo(_footer(loaded, last, sampling, _end(last, tokenizer, options), options["speculate"] > 0), err=True)


def _prompt(prompt: str | None, file: Path | None) -> str:
    if prompt is not None and file is not None:
        raise click.UsageError("give either --prompt or --file")
    if file is None and (prompt == "-" or (prompt is None and not sys.stdin.isatty())):
        file = Path("-")
    if file is not None:
        return read_text(file).removesuffix("\n")
    if prompt is None:
        raise click.UsageError("give a prompt: --prompt TEXT, --file FILE, or text on stdin")
    return prompt


def _load(model: str, options: dict[str, Any]) -> tuple[Model, Tokenizer]:
    """Open a model, after packing a checkpoint into the user's cache at its first use."""
    from quantkit.cli.bus_error import explain_bus_errors
    from quantkit.generation.loading import load
    from quantkit.quantization.packed_copies import packed_copy

    explain_bus_errors()
    threads = options["threads"]
    with ExitStack() as stack:
        with Bar("downloading") as download, Bar("packing") as bar:

            def packing(now: Progress) -> None:
                download.close()
                bar.update(now.done, now.total, now.tensor)

            copy = packed_copy(model, threads=threads, progress=packing, downloading=lambda now: show(download, now))
            folder = stack.enter_context(copy)
        chosen = {name: options[name] for name in ("threads", "kv_dtype", "numa", "mmap")}
        return load(folder, context=options["ctx_size"], **chosen)


def _conversation(tokenizer: Tokenizer, asked: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the prompt, as `stream_generate` takes it: a conversation where there is a template, else a text."""
    system, variables = options["system_prompt"], options["chat_template_kwargs"]
    if options["ignore_chat_template"] or not tokenizer.has_chat_template:
        for option, value in (("--system-prompt", system), ("--chat-template-kwargs", variables)):
            if value is not None:
                raise OptionError(f"{option} needs a chat template, and none is used here")
        return {"prompt": asked}
    if not asked:
        return {"prompt": []}
    messages = [{"role": "system", "content": system}] if system is not None else []
    return {"prompt": [*messages, {"role": "user", "content": asked}], "chat_template_kwargs": variables}


def _end(last: GenerationResponse, tokenizer: Tokenizer, options: dict[str, Any]) -> str:
    """Why an answer ended, in the words of its `finish_reason`."""
    match last.finish_reason:
        case "stop":
            ended = last.token in tokenizer.eos_token_ids or not options["stop"]
            return "stop, end of text" if ended else "stop, --stop"
        case "length":
            limited = last.generation_tokens == options["max_tokens"]
            return f"length, --max-tokens {options['max_tokens']}" if limited else "length, the context is full"
    return "interrupted"


def _footer(model: Model, last: GenerationResponse, sampling: str, end: str, speculating: bool) -> str:
    from quantkit.cli.text import size
    from quantkit.engine.machine import peak_memory
    from quantkit.evaluation.benchmark import known_bandwidth

    # Each pass reads the weights once, and yields what was accepted of its draft and one token more.
    passes = last.generation_tokens - last.draft_n_accepted
    rate = last.generation_tps * model.bytes_per_token * passes / last.generation_tokens
    known = known_bandwidth(model.threads) or 0.0
    # Where less than this was measured, the machine was busy with something else then.
    share = f" ({rate / known:.0%} of the {known / 1e9:.1f} GB/s that `bench` measured)" if known >= rate > 0 else ""
    cached = last.prompt_tokens + last.generation_tokens - 1  # the last token is not run
    cache = model.cache_shape
    lines = {
        "sampling": sampling,
        "end": end,
        "prompt": f"{last.prompt_tokens} tokens, {last.prompt_tps:.1f} tokens/s",
        "generation": f"{last.generation_tokens} tokens, {last.generation_tps:.1f} tokens/s",
        "speculation": f"{last.draft_n_accepted} of {last.draft_n} drafted tokens accepted",
        "weights": f"{rate / 1e9:.1f} GB/s{share}",
        "KV cache": f"{size(cache.nbytes(cached))} for {cached} tokens, {cache.kind}",
        "state": f"{size(model.state_bytes)}, however many tokens",
        "peak memory": size(peak_memory()),
    }
    if not speculating:
        del lines["speculation"]
    if not model.state_bytes:
        del lines["state"]
    if not last.generation_tps:  # a single token takes no time after the first
        del lines["generation"], lines["weights"]
    return "\n".join(f"{name + ':':13}{text}" for name, text in lines.items())
