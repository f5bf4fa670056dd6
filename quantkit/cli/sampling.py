"""How a command chooses tokens: its options, and what counts where none is given.

Each setting is what the user asked for, else what the checkpoint's `generation_config.json` recommends, else
llama.cpp's default. The samplers themselves are `quantkit.generation.sampling`'s.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from quantkit.generation.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Setting:
    """A setting that a checkpoint may recommend.

    Attributes
    ----------
    options : tuple of str
        Its spellings on the command line.
    field : str
        Its name in `generation_config.json`.
    default : float
        llama.cpp's default.
    text : str
        What it does.
    """

    options: tuple[str, ...]
    field: str
    default: float
    text: str


SETTINGS = {
    "temp": Setting(("--temp", "--temperature"), "temperature", 0.8, "Temperature; 0 is greedy"),
    "top_k": Setting(("--top-k",), "top_k", 40, "Sample among the likeliest K; 0 is off"),
    "top_p": Setting(("--top-p",), "top_p", 0.95, "Sample among those that hold this probability"),
    "min_p": Setting(("--min-p",), "min_p", 0.05, "Drop tokens below this share of the likeliest"),
    "repeat_penalty": Setting(
        ("--repeat-penalty", "--repetition-penalty"), "repetition_penalty", 1.0, "Divide logits of earlier tokens"
    ),
}
"""Parameter of a command -> what it sets."""


def sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of sampling, which `choose_sampling` reads."""
    options = [
        click.option(
            *setting.options,
            type=type(setting.default),
            help=f"{setting.text}  [default: the model's own, else {setting.default:g}]",
        )
        for setting in SETTINGS.values()
    ]
    options += [
        click.option(
            "--presence-penalty", default=0.0, show_default=True, help="Lower logits of earlier tokens, once."
        ),
        click.option(
            "--frequency-penalty", default=0.0, show_default=True, help="Lower logits of earlier tokens, each time."
        ),
        click.option(
            "--repeat-last-n",
            "--repetition-context-size",
            type=click.IntRange(min=-1),
            default=-1,
            show_default=True,
            help="Tokens that penalties look back at; -1 looks at the whole text.",
        ),
        click.option(
            "-s",
            "--seed",
            type=click.IntRange(min=-1),
            default=0,
            show_default=True,
            help="Seed of the sampling; -1 takes another one each time.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def choose_sampling(tokenizer: Tokenizer, asked: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Choose the settings of an answer.

    Parameters
    ----------
    tokenizer : Tokenizer
        Knows what its checkpoint recommends.
    asked : Mapping
        The command's parameters; a setting that was not asked for is None.

    Returns
    -------
    dict
        Sampler and logits processors, as `stream_generate` takes them.
    str
        The options that repeat the answer: `--temp 0.8 --top-k 40 --top-p 0.95 --min-p 0.05 --seed 1`, or `--temp 0`.

    Raises
    ------
    OptionError
        When a value is outside of its range.
    """
    from quantkit.generation.sampling import make_logits_processors, make_sampler

    recommended = tokenizer.generation_defaults
    chosen: dict[str, Any] = {
        name: recommended.get(setting.field, setting.default) if asked[name] is None else asked[name]
        for name, setting in SETTINGS.items()
    }
    seed = secrets.randbelow(1 << 32) if asked["seed"] == -1 else asked["seed"]
    options = _as_options(chosen, seed)
    penalties = (chosen.pop("repeat_penalty"), asked["presence_penalty"], asked["frequency_penalty"])
    return {
        "sampler": make_sampler(**chosen, seed=seed),
        "logits_processors": make_logits_processors(*penalties, last_n=asked["repeat_last_n"]),
    }, options


def _as_options(chosen: Mapping[str, float], seed: int) -> str:
    greedy = chosen["temp"] == 0
    counting = {name: value for name, value in chosen.items() if not greedy or name in ("temp", "repeat_penalty")}
    if counting["repeat_penalty"] == 1:
        del counting["repeat_penalty"]
    spelled = [f"{SETTINGS[name].options[0]} {str(value).removesuffix('.0')}" for name, value in counting.items()]
    return " ".join(spelled if greedy else [*spelled, f"--seed {seed}"])
