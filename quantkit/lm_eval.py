"""quantkit's models in EleutherAI's lm-eval, as the model type `quantkit` (extra `eval`).

Importing this module registers it; run as a program, it is lm-eval's own command line with that type in it:

    python -m quantkit.lm_eval run --model quantkit --model_args pretrained=smollm2-packed --tasks hellaswag

Tasks, prompts and metrics are lm-eval's. What it asks for is computed in `quantkit.evaluation`, many texts in a pass.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from quantkit.errors import GenerationError, OptionError

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ImportError as error:
    missing = f"quantkit.lm_eval needs lm-eval ({error}): pip install 'quantkit[eval]'"
    if __name__ == "__main__":
        sys.exit(f"error: {missing}")
    raise OptionError(missing) from error

from quantkit.evaluation.continuations import Prompt, continue_texts
from quantkit.evaluation.likelihoods import Continuation, log_likelihoods
from quantkit.generation.loading import load
from quantkit.generation.options import is_whole, require
from quantkit.generation.sampling import make_sampler

BATCH = 16
"""Texts in a pass, unless told otherwise."""
MAX_GEN_TOKS = 256
"""Tokens that are generated at most where the task does not say."""
KV_DTYPES = {32: "f32", 16: "int16", 8: "int8"}
SAMPLING = {"temperature": "temp", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}
"""Names of lm-eval's options for generation -> of `make_sampler`."""


@register_model("quantkit")
class QuantkitLM(TemplateLM):  # type: ignore[misc]  # lm-eval is no dependency: its classes are unknown to type checkers
    """A model of quantkit's as lm-eval sees it.

    Parameters
    ----------
    pretrained : path
        A packed folder, a checkpoint folder or a GGUF file.
    batch_size : int or "auto"
        Texts in a pass; no result depends on it.
    max_length : int, optional
        Tokens that the model holds; default: what it was made for.
    max_gen_toks : int
        Tokens that are generated at most where the task does not say.
    threads : int, optional
        Default: the physical cores that this process may use.
    kv_bits : {32, 16, 8}
        Precision of the KV cache.
    seed : int
        Of tasks that sample; each request has a generator of its own.
    max_batch_size : int, optional
        Of `auto`.
    device : str, optional
        lm-eval names one to every model; quantkit runs on the CPU.
    """

    def __init__(
        self,
        pretrained: str | os.PathLike[str],
        batch_size: int | str = BATCH,
        max_length: int | None = None,
        max_gen_toks: int = MAX_GEN_TOKS,
        threads: int | None = None,
        kv_bits: int = 16,
        seed: int = 0,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        require(kv_bits in KV_DTYPES, "kv_bits", kv_bits, "32, 16 or 8")
        if str(batch_size).startswith("auto"):
            batch_size = min(BATCH, max_batch_size or BATCH)
        number = int(batch_size) if str(batch_size).isdecimal() else 0
        require(number >= 1, "batch_size", batch_size, "a whole number from 1 up, or auto")
        require(is_whole(max_gen_toks) and max_gen_toks >= 1, "max_gen_toks", max_gen_toks, "a whole number from 1 up")
        self.pretrained = os.fspath(pretrained)
        self.batch_size, self.max_gen_toks, self.seed = number, max_gen_toks, seed
        self.model, self.tokenizer = load(pretrained, threads=threads, context=max_length, kv_dtype=KV_DTYPES[kv_bits])

    @property
    def max_length(self) -> int:
        """Tokens that the model holds."""
        return self.model.context_length

    @property
    def eot_token_id(self) -> int:
        """A token that ends a text."""
        if not self.tokenizer.eos_token_ids:
            raise GenerationError(f"{self.pretrained}: declares no token that ends a text")
        return min(self.tokenizer.eos_token_ids)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no other context: the BOS, or else what ends a text."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Name under which lm-eval keeps requests that went through the chat template."""
        return self.pretrained.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the checkpoint's chat template, which lm-eval notes in its results; nothing where it is not used."""
        return str(self.tokenizer.chat_template.held) if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Write a conversation as a prompt; without a generation prompt, one that goes on in the last message."""
        text = self.tokenizer.apply_chat_template(chat_history, add_generation_prompt=add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"].strip()
        place = text.rfind(last)
        if place < 0:
            raise GenerationError("the chat template does not write the last message as it is: it cannot be continued")
        return text[: place + len(last)]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the tokens of a text; by default behind the BOS where the tokenizer adds it, but never behind two."""
        tokens = self.tokenizer.encode(string, add_special_tokens=add_special_tokens is not False)
        twice = add_special_tokens is None and tokens[:2] == [self.tokenizer.bos_token_id] * 2
        return tokens[1:] if twice else tokens

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **unused: Any
    ) -> list[tuple[float, bool]]:
        """Answer requests of (their texts, tokens of the context, tokens of the continuation)."""
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running loglikelihood requests") as bar:
            continuations = [Continuation(context, tokens) for _, context, tokens in requests]
            found = log_likelihoods(self.model, continuations, batch=self.batch_size, progress=bar.update)
        answers = [(each.log_likelihood, each.greedy) for each in found]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: Iterable[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts, in windows as long as the model holds, each token scored once."""
        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for request in requests:
            pairs = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
            before = len(windows)
            windows += [(None, *make_disjoint_window(pair)) for pair in pairs]
            counts.append(len(windows) - before)
        parts = iter(self._loglikelihood_tokens(windows, disable_tqdm))
        totals = [sum(next(parts)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Iterable[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what follows each context, up to the stop strings of its task."""
        asked = [request.args for request in requests]
        prompts = [self._prompt(*each) for each in asked]
        with tqdm(total=len(prompts), disable=disable_tqdm, desc="Running generate_until requests") as bar:
            found = continue_texts(self.model, self.tokenizer, prompts, batch=self.batch_size, progress=bar.update)
        for each, text in zip(asked, found, strict=True):
            self.cache_hook.add_partial("generate_until", each, text)
        return found

    def _prompt(self, context: str, options: dict[str, Any]) -> Prompt:
        kwargs = normalize_gen_kwargs(options, self.max_gen_toks)
        stop = [text for text in kwargs.pop("until") if text]
        max_tokens = int(kwargs.pop("max_gen_toks"))
        room = self.max_length - max_tokens
        require(room > 0, "max_gen_toks", max_tokens, f"less than the model's context of {self.max_length}")
        sampled = kwargs.pop("do_sample")
        if unknown := kwargs.keys() - SAMPLING:
            raise OptionError(f"options for generation that quantkit does not have: {', '.join(sorted(unknown))}")
        sampling = {SAMPLING[name]: value for name, value in kwargs.items()} if sampled else {}
        tokens = (self.tok_encode(context) or [self.prefix_token_id])[-room:]
        return Prompt(tokens, max_tokens, stop, make_sampler(**sampling, seed=self.seed))


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
