"""Generation: a prompt goes in, text comes out token by token.

The loop of every text generator in quantkit: encode, run the model, process logits, sample, decode, and know when to
stop. It drives a model through `new_sequence` and `forward` alone; how those compute is the engine's business, which
token is taken is the sampler's. A pass may check a draft of the next tokens along with the last one (`speculation.py`
makes drafts); plain decoding is the same loop with empty drafts, and the tokens are the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import GenerationError, OptionError
from quantkit.generation.options import is_whole, require
from quantkit.generation.sampling import (
    Logits,
    LogitsProcessor,
    PassSampler,
    Sampler,
    expect_choice,
    log_softmax,
    make_sampler,
)
from quantkit.generation.speculation import Speculation
from quantkit.generation.stopping import StopStrings
from quantkit.generation.text.chat_template import Message
from quantkit.generation.text.detokenizer import Detokenizer
from quantkit.generation.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from quantkit.engine.model import Model

Prompt = str | Sequence[int] | Sequence[Message]
"""A text (encoded with the special tokens that the tokenizer adds, though never with a second BOS where it spells one
out), token ids (used as they are), or a conversation (written by the chat template, whose output is encoded without
adding special tokens)."""

_ARGUMENTS = frozenset({"messages", "now", "tokenize"})
"""Arguments of `Tokenizer.apply_chat_template` that are no variables."""

FinishReason = Literal["stop", "length"]

PROMPT_PIECE = 512
"""Tokens of a prompt between two calls of `progress`; results do not depend on it."""


@dataclass
class GenerationResponse:
    """What one generated token adds.

    Attributes
    ----------
    text : str
        Text that this token made final: empty while a character is unfinished or may belong to a stop string.
    token : int
        The token's id.
    prompt_tokens : int
        Number of tokens of the prompt.
    prompt_tps : float
        Tokens of the prompt per second, up to the first sampled token.
    generation_tokens : int
        Tokens generated so far, this one included.
    generation_tps : float
        Tokens generated after the first, per second since then; 0 for the first.
    finish_reason : {"stop", "length"} or None
        Set on the last response: `stop` after an end-of-text token or a stop string, `length` when `max_tokens` or the
        context is used up.
    logits : ndarray
        float32 `[vocab_size]` that the sampler saw, after the logits processors.
    from_draft : bool
        Whether the token had been drafted.
    draft_n, draft_n_accepted : int
        Tokens drafted so far, and how many of the generated ones had been.
    """

    text: str
    token: int
    prompt_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    finish_reason: FinishReason | None
    logits: Logits = field(repr=False, compare=False)
    from_draft: bool = False
    draft_n: int = 0
    draft_n_accepted: int = 0

    @cached_property
    def logprobs(self) -> NDArray[np.float32]:
        """Natural logarithm of every token's probability, float32 `[vocab_size]`; computed when first asked for."""
        return log_softmax(self.logits)


def generate(model: Model, tokenizer: Tokenizer, prompt: Prompt, **options: Any) -> str:
    """Return the text that follows a prompt. Takes the options of `stream_generate` and raises as it does."""
    return "".join(response.text for response in stream_generate(model, tokenizer, prompt, **options))


def stream_generate(
    model: Model,
    tokenizer: Tokenizer,
    prompt: Prompt,
    *,
    max_tokens: int = 256,
    sampler: Sampler | None = None,
    logits_processors: Sequence[LogitsProcessor] = (),
    stop: str | Sequence[str] = (),
    ignore_eos: bool = False,
    speculate: int = 0,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Generator[GenerationResponse, None, None]:
    """Generate text token by token.

    Parameters
    ----------
    model, tokenizer
        What `load` returns.
    prompt : str, sequence of int, or sequence of dict
        See `Prompt`.
    max_tokens : int
        Stop after so many tokens; -1 goes on until the context is full.
    sampler : callable, optional
        `logits -> token`, for instance from `make_sampler`. Greedy when None.
    logits_processors : sequence of callable
        Applied in turn before the sampler: `(tokens so far with the prompt's, logits) -> logits`.
    stop : str or sequence of str
        The text ends before the first of these, wherever token boundaries are.
    ignore_eos : bool
        Go on after tokens that end a text.
    speculate : int
        Draft up to so many tokens from what the text said before, and check them in one pass. The tokens stay the same;
        texts that repeat their prompt or themselves arrive faster. Few are drafted where drafts prove wrong; 0 is off.
    chat_template_kwargs : Mapping, optional
        Further variables of the chat template, for a conversation: `{"enable_thinking": False}` for Qwen3.
    progress : callable, optional
        Called with (tokens done, tokens in all) while the prompt is processed.

    Returns
    -------
    generator of GenerationResponse
        One for each generated token; the last one's `finish_reason` is set, and the joined `text`s are the result.
        Closing the iterator early frees the sequence's memory.

    Raises
    ------
    GenerationError
        At once, when the prompt is empty, longer than the context, or holds an id that the model does not know, or
        when the chat template refuses the conversation; while iterating, when the logits are not finite.
    OptionError
        At once, when `tokenizer` is none of quantkit's, or another argument makes no sense.
    """
    require(isinstance(tokenizer, Tokenizer), "tokenizer", tokenizer, "what `load` or `load_tokenizer` returns")
    require(sampler is None or callable(sampler), "sampler", sampler, "a function, such as `make_sampler` returns")
    listed = isinstance(logits_processors, Sequence) and all(map(callable, logits_processors))
    require(listed, "logits_processors", logits_processors, "a list of functions")
    expected = "a whole number from 1 up, or -1 to fill the context"
    require(is_whole(max_tokens) and (max_tokens >= 1 or max_tokens == -1), "max_tokens", max_tokens, expected)
    stops = StopStrings([stop] if isinstance(stop, str) else stop)
    speculation = Speculation(speculate)
    tokens = encode_prompt(tokenizer, prompt, chat_template_kwargs)
    _check_prompt(tokens, model)
    # The last token is sampled, not run, so one more than the cache holds can be generated.
    room = model.context_length - len(tokens) + 1
    limit = room if max_tokens == -1 else min(max_tokens, room)
    return _responses(
        _choices(
            model,
            tokens,
            limit=limit,
            sampler=sampler or make_sampler(),
            logits_processors=logits_processors,
            speculation=speculation,
            progress=progress or (lambda done, total: None),
        ),
        prompt_tokens=len(tokens),
        limit=limit,
        detokenizer=tokenizer.detokenizer(continuation=not _is_conversation(prompt)),
        stops=stops,
        eos_token_ids=frozenset() if ignore_eos else tokenizer.eos_token_ids,
        speculation=speculation,
    )


def encode_prompt(
    tokenizer: Tokenizer, prompt: Prompt, chat_template_kwargs: Mapping[str, Any] | None = None
) -> list[int]:
    """Return the token ids of a prompt; see `Prompt` for which special tokens are added."""
    variables = _template_variables(chat_template_kwargs, prompt)
    if isinstance(prompt, str):
        tokens = tokenizer.encode(prompt) if prompt else []
        bos = tokenizer.bos_token_id
        return tokens[1:] if tokens[:2] == [bos, bos] else tokens
    if _is_conversation(prompt):
        return tokenizer.apply_chat_template(cast("Sequence[Message]", prompt), **variables, tokenize=True)
    numbers = isinstance(prompt, Sequence | np.ndarray) and not isinstance(prompt, bytes)
    if not numbers or not all(is_whole(token) for token in prompt):
        raise GenerationError(f"the prompt is {prompt!r:.60}; expected a text, token ids, or messages")
    return [int(token) for token in cast("Sequence[int]", prompt)]


def _template_variables(given: Mapping[str, Any] | None, prompt: Prompt) -> Mapping[str, Any]:
    if not given:
        return {}
    expected = f"names and values of template variables, without {', '.join(sorted(_ARGUMENTS))}"
    named = isinstance(given, Mapping) and all(isinstance(name, str) and name not in _ARGUMENTS for name in given)
    require(named, "chat_template_kwargs", given, expected)
    if not _is_conversation(prompt):
        raise OptionError("chat_template_kwargs are for a conversation; the prompt is a plain text or token ids")
    return given


def _is_conversation(prompt: Prompt) -> bool:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _check_prompt(tokens: Sequence[int], model: Model) -> None:
    if not tokens:
        raise GenerationError("the prompt is empty: give at least one token")
    if len(tokens) > model.context_length:
        raise GenerationError(f"the prompt has {len(tokens)} tokens, the model's context holds {model.context_length}")
    if min(tokens) < 0 or max(tokens) >= model.vocab_size:
        wrong = next(token for token in tokens if not 0 <= token < model.vocab_size)
        raise GenerationError(f"token id {wrong} is outside of the model's vocabulary, 0 to {model.vocab_size - 1}")


def _choices(
    model: Model,
    tokens: list[int],
    *,
    limit: int,
    sampler: Sampler,
    logits_processors: Sequence[LogitsProcessor],
    speculation: Speculation,
    progress: Callable[[int, int], None],
) -> Generator[tuple[int, Logits, bool], None, None]:
    """Choose up to `limit` tokens that follow `tokens`, to which they are added -> token, logits, had it been drafted.

    The sampler is asked once for each token, and the logits are those of decoding token by token to the last bit: what
    comes out, and what a sampler's random numbers go to, does not depend on the drafts.
    """
    prompt_tokens, end = len(tokens), len(tokens) + limit
    with closing(model.new_sequence()) as sequence:
        alone = sampler if logits_processors else PassSampler.of(sampler) or sampler
        choose, sequence.choice = alone, expect_choice(alone)
        for start in range(0, prompt_tokens, PROMPT_PIECE):
            piece = tokens[start : start + PROMPT_PIECE]
            rows = model.forward([(sequence, piece)])
            progress(start + len(piece), prompt_tokens)
        draft: list[int] = []
        while True:
            for place, drafted in enumerate([*draft, None]):
                logits = rows[place]
                for process in logits_processors:
                    logits = process(tokens, logits)
                token = int(choose(logits))
                tokens.append(token)
                yield token, logits, token == drafted
                if token != drafted:
                    break
            if len(tokens) == end:
                return
            if draft:
                sequence.truncate(len(tokens) - 1)
            if not speculation.longest:
                sequence.choice = expect_choice(alone)
                rows = model.forward([(sequence, [token])])
                continue
            draft = speculation.draft(tokens, most=end - len(tokens) - 1)
            if draft:
                sequence.keep_state(len(tokens))
            choose = sampler if draft else alone
            sequence.choice = expect_choice(choose)
            computed = sequence.behind + 1 + len(draft)
            begin = time.perf_counter()
            rows = model.forward([(sequence, [token, *draft])], every=True)
            speculation.passed(computed, time.perf_counter() - begin)


def _responses(
    choices: Generator[tuple[int, Logits, bool], None, None],
    *,
    prompt_tokens: int,
    limit: int,
    detokenizer: Detokenizer,
    stops: StopStrings,
    eos_token_ids: frozenset[int],
    speculation: Speculation,
) -> Generator[GenerationResponse, None, None]:
    """Turn chosen tokens into responses, and stop where the text ends."""
    begin = time.perf_counter()
    accepted = 0
    with closing(choices):
        for count, (token, logits, from_draft) in enumerate(choices, 1):
            now = time.perf_counter()
            if count == 1:
                first, prompt_tps = now, prompt_tokens / (now - begin)
            accepted += from_draft
            ended = token in eos_token_ids
            text = "" if ended else stops.add(detokenizer.add(token))
            if ended or count == limit:
                text += stops.add(detokenizer.finish()) + stops.finish()
            finish_reason: FinishReason | None = "length" if count == limit else None
            if ended or stops.found:
                finish_reason = "stop"
            generation_tps = (count - 1) / (now - first) if count > 1 else 0.0
            yield GenerationResponse(
                text,
                token,
                prompt_tokens,
                prompt_tps,
                count,
                generation_tps,
                finish_reason,
                logits,
                from_draft,
                speculation.drafted,
                accepted,
            )
            if finish_reason:
                return
