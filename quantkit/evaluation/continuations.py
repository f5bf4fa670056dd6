"""Texts that a model writes on, many at once: each pass takes one more token of every text, and prompts of new ones.

Texts come and go between passes, and none depends on the others. `quantkit.generation.stream` writes one text, token by
token; this module is for tasks that ask for hundreds, such as those of `quantkit.lm_eval`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Many
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from quantkit.errors import GenerationError
from quantkit.evaluation.likelihoods import texts_together
from quantkit.generation.sampling import Logits, PassSampler, Sampler, expect_choice, make_sampler
from quantkit.generation.stopping import StopStrings

if TYPE_CHECKING:
    from quantkit.engine.kv_cache import Sequence
    from quantkit.engine.model import Model
    from quantkit.generation.text.tokenizer import Tokenizer


class Prompt(NamedTuple):
    """What to write on, and where to end.

    Attributes
    ----------
    tokens : sequence of int
        At least one.
    max_tokens : int
        The text ends after so many.
    stop : sequence of str
        It ends before the first of these.
    sampler : callable
        Of this text alone, since samplers carry their random numbers along. Greedy by default.
    """

    tokens: Many[int]
    max_tokens: int
    stop: Many[str] = ()
    sampler: Sampler = make_sampler()


def continue_texts(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Many[Prompt],
    *,
    batch: int = 16,
    progress: Callable[[int], object] = lambda done: None,
) -> list[str]:
    """Return what follows each prompt, up to a token that ends a text, a stop string or its number of tokens.

    Parameters
    ----------
    model, tokenizer
        What `quantkit.load` returns.
    prompts : sequence of Prompt
    batch : int
        Most texts that are written at once; fewer where they are so long that they would fill the memory. No text
        depends on it.
    progress : callable
        Told how many texts were finished since it was last called.

    Raises
    ------
    GenerationError
        When a prompt is empty or, with its `max_tokens`, longer than the context, before anything is written; when
        logits are not finite.
    OptionError
        When `stop` makes no sense.
    """
    for prompt in prompts:
        room = model.context_length - len(prompt.tokens) + 1  # the last token is written, not read
        if not prompt.tokens or not 1 <= prompt.max_tokens <= room:
            cause = f"leaves room for {room} tokens, not {prompt.max_tokens}" if prompt.tokens else "is empty"
            raise GenerationError(f"a prompt {cause}")
    found = [""] * len(prompts)
    waiting = deque(_Text(number, prompt, tokenizer) for number, prompt in enumerate(prompts))
    together = texts_together(batch, max((len(each.tokens) + each.max_tokens for each in prompts), default=0))
    with ExitStack() as stack:
        free = [stack.enter_context(model.new_sequence()) for _ in range(min(together, len(prompts)))]
        writing: list[tuple[Sequence, _Text]] = []
        while waiting or writing:
            while waiting and free:
                writing.append((free.pop(), waiting.popleft()))
            for sequence, text in writing:
                sequence.choice = expect_choice(text.sampler)
            rows = model.forward([(sequence, text.unread) for sequence, text in writing])
            for (_, text), logits in zip(writing, rows, strict=True):
                text.add(logits)
            ended = [(sequence, text) for sequence, text in writing if text.ended]
            writing = [(sequence, text) for sequence, text in writing if not text.ended]
            for sequence, text in ended:
                sequence.truncate(0)
                free.append(sequence)
                found[text.number] = text.written
            progress(len(ended))
    return found


class _Text:
    """A prompt, and what was written behind it so far.

    Attributes
    ----------
    unread : sequence of int
        Tokens that the model has not read yet: the prompt, then the last token.
    sampler : callable
        Chooses the next token, or knows what the pass has chosen.
    """

    def __init__(self, number: int, prompt: Prompt, tokenizer: Tokenizer) -> None:
        self.number, self.written, self.ended = number, "", False
        self.unread: Many[int] = prompt.tokens
        self.sampler: Sampler = PassSampler.of(prompt.sampler) or prompt.sampler
        self._left, self._stops = prompt.max_tokens, StopStrings(prompt.stop)
        self._detokenizer, self._ends = tokenizer.detokenizer(continuation=True), tokenizer.eos_token_ids

    def add(self, logits: Logits) -> None:
        """Choose the next token."""
        token = int(self.sampler(logits))
        self.unread = [token]
        self._left -= 1
        if token not in self._ends:
            self.written += self._stops.add(self._detokenizer.add(token))
        self.ended = token in self._ends or self._stops.found or not self._left
        if self.ended:
            self.written += self._stops.add(self._detokenizer.finish()) + self._stops.finish()
