"""What llama-perplexity says of the same weights on the same text: within half a percent.

llama.cpp computes the logits; what its tool makes of them is written down here, sums, 16-bit base file and all. Weights
are in f16, those of the worse model rounded to the grid of Q4_0 before, so that neither program rounds activations.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

import quantkit
from quantkit import formats
from quantkit.evaluation.estimates import Divergence
from tiny_gguf import ARRAY, F32, TEXT, U32, gguf_name

CONTEXT, WINDOWS = 512, 4
AGREEMENT = 5e-3
"""Relative difference that is allowed."""
QUANTILE_AGREEMENT = 3e-2
"""That of quantiles, which are single tokens'."""

pytestmark = [pytest.mark.real, pytest.mark.live]


class Files:
    """GGUF files of the real model: its weights in f16, as they are and on the grid of Q4_0; and in Q8_0."""

    def __init__(self, folder: Path) -> None:
        self.exact, self.rounded, self.q8_0 = (folder / f"{name}.gguf" for name in ("exact", "rounded", "q8_0"))
        source = formats.open(os.environ["QUANTKIT_TEST_MODEL"])
        write(self.exact, source, lambda values: values.astype(np.float16), GGMLQuantizationType.F16)
        write(self.rounded, source, on_the_grid, GGMLQuantizationType.F16)
        write(
            self.q8_0,
            source,
            lambda values: gguf.quantize(values, GGMLQuantizationType.Q8_0),
            GGMLQuantizationType.Q8_0,
        )


def on_the_grid(values: NDArray[np.float32]) -> NDArray[np.float16]:
    kind = GGMLQuantizationType.Q4_0
    rounded: NDArray[np.float16] = gguf.dequantize(gguf.quantize(values, kind), kind).astype(np.float16)
    return rounded


def write(path: Path, source: formats.ModelSource, store: Any, kind: GGMLQuantizationType) -> None:
    """Write a llama of a Hugging Face folder; matrices as `store` makes them, vectors in f32."""
    config = source.config
    writer = gguf.GGUFWriter(path, "llama")
    for key, value, type_ in [
        ("block_count", config["num_hidden_layers"], U32),
        ("context_length", config["max_position_embeddings"], U32),
        ("embedding_length", config["hidden_size"], U32),
        ("feed_forward_length", config["intermediate_size"], U32),
        ("attention.head_count", config["num_attention_heads"], U32),
        ("attention.head_count_kv", config["num_key_value_heads"], U32),
        ("attention.layer_norm_rms_epsilon", config["rms_norm_eps"], F32),
        (
            "rope.freq_base",
            config["rope_theta"] if "rope_theta" in config else config["rope_parameters"]["rope_theta"],
            F32,
        ),
    ]:
        writer.add_key_value(f"llama.{key}", value, type_)
    model = json.loads(Path(str(source.files["tokenizer.json"])).read_text())
    tokens = sorted(model["model"]["vocab"], key=model["model"]["vocab"].get)
    special = {token["content"] for token in model["added_tokens"] if token["special"]}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["model"]["merges"]]
    writer.add_key_value("tokenizer.ggml.model", "gpt2", TEXT)
    writer.add_key_value("tokenizer.ggml.pre", "smollm", TEXT)
    writer.add_key_value("tokenizer.ggml.tokens", tokens, ARRAY)
    writer.add_key_value("tokenizer.ggml.token_type", [3 if token in special else 1 for token in tokens], ARRAY)
    writer.add_key_value("tokenizer.ggml.merges", merges, ARRAY)
    for name, token in (("bos", "<|im_start|>"), ("eos", "<|im_end|>")):
        writer.add_key_value(f"tokenizer.ggml.{name}_token_id", tokens.index(token), U32)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name in source.names:
        values = np.asarray(source.tensor(name).data, np.float32)
        if count := next((count for module, count in heads.items() if f".{module}." in name), 0):
            # llama.cpp turns neighbouring rows of a head together, transformers those of its halves.
            values = values.reshape(count, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        if values.ndim == 2:
            writer.add_tensor(gguf_name(name), store(values), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def files() -> Iterator[Files]:
    with tempfile.TemporaryDirectory() as folder:
        yield Files(Path(folder))


@pytest.fixture(scope="module")
def text() -> str:
    return Path(os.environ["QUANTKIT_TEST_TEXT"]).read_text()


class LlamaCpp:
    """Logits of llama.cpp for the windows that its tool scores."""

    def __init__(self, file: Path) -> None:
        from llama_cpp import Llama

        self._model = Llama(str(file), n_ctx=CONTEXT, n_batch=CONTEXT, logits_all=True, verbose=False)

    def tokens(self, text: str) -> list[int]:
        found: list[int] = self._model.tokenize(text.encode(), add_bos=True, special=False)
        return found

    def windows(self, tokens: Sequence[int]) -> Iterator[tuple[NDArray[np.float32], list[int]]]:
        """Logits f32 `[255, vocab_size]` of each window, and the tokens that they predict."""
        first = CONTEXT // 2
        for begin in range(0, WINDOWS * CONTEXT, CONTEXT):
            window = list(tokens[begin : begin + CONTEXT])
            self._model.reset()
            self._model.eval(window)
            yield np.array(self._model.scores[first : CONTEXT - 1]), window[first + 1 :]


class Tool:
    """`perplexity.cpp`: `kl_divergence`, with what `--kl-divergence-base` keeps of the base model."""

    def __init__(self, base: LlamaCpp, model: LlamaCpp, tokens: Sequence[int]) -> None:
        rows = []
        for (base_logits, targets), (logits, _) in zip(base.windows(tokens), model.windows(tokens), strict=True):
            rows += [self._token(*row) for row in zip(base_logits, logits, targets, strict=True)]
        self.nll, self.nll_base, self.kld, self.p_diff, self.same_top = np.array(rows).T
        self.count = len(rows)

    def _token(self, base: NDArray[np.float32], logits: NDArray[np.float32], target: int) -> tuple[float, ...]:
        lowest = max(base.min(), base.max() - 16)
        log_sum = math.log(np.exp(base - base.max()).sum(dtype=np.float64))
        scale = (base.max() - lowest) / np.float32(65535)
        codes = np.rint((np.maximum(base, lowest) - lowest) / scale)
        base_logprobs = scale * codes + (lowest - base.max() - np.float32(log_sum))
        logprobs = logits - logits.max() - np.float32(math.log(np.exp(logits - logits.max()).sum(dtype=np.float64)))
        counts = base_logprobs > -16
        kld = (np.exp(base_logprobs) * (base_logprobs - logprobs))[counts].sum(dtype=np.float64)
        nll, nll_base = -float(logprobs[target]), -float(base_logprobs[target])
        return (
            nll,
            nll_base,
            float(kld),
            math.exp(-nll) - math.exp(-nll_base),
            base_logprobs.argmax() == logits.argmax(),
        )

    def mean_and_uncertainty(self, values: NDArray[np.float64]) -> tuple[float, float]:
        mean = values.sum() / self.count
        return float(mean), math.sqrt(((values * values).sum() / self.count - mean * mean) / (self.count - 1))

    def figures(self) -> dict[str, float]:
        """What it prints, under quantkit's names."""
        (log_ppl, log_error), (log_base, base_error) = map(self.mean_and_uncertainty, (self.nll, self.nll_base))
        covariance = ((self.nll * self.nll_base).sum() / self.count - log_ppl * log_base) / (self.count - 1)
        mean_square, square_error = self.mean_and_uncertainty(self.p_diff**2)
        kld, kld_error = self.mean_and_uncertainty(self.kld)
        mean_dp, dp_error = self.mean_and_uncertainty(self.p_diff)
        same = float(self.same_top.sum()) / self.count
        return {
            "perplexity": math.exp(log_ppl),
            "perplexity error": math.exp(log_ppl) * log_error,
            "reference_perplexity": math.exp(log_base),
            "perplexity_ratio": math.exp(log_ppl - log_base),
            "perplexity_ratio error": math.exp(log_ppl - log_base)
            * math.sqrt(log_error**2 + base_error**2 - 2 * covariance),
            "correlation": covariance / (log_error * base_error),
            "mean_kl": kld,
            "mean_kl error": kld_error,
            "mean_dp": mean_dp,
            "mean_dp error": dp_error,
            "rms_dp": math.sqrt(mean_square),
            "rms_dp error": 0.5 / math.sqrt(mean_square) * square_error,
            "same_top": same,
            "same_top error": math.sqrt(same * (1 - same) / (self.count - 1)),
        }


def figures(found: Any) -> dict[str, float]:
    """The same of an evaluation."""
    told = {"perplexity": found.perplexity, **vars(found.divergence)}
    flat: dict[str, float] = {}
    for name, value in told.items():
        flat |= {name: value} if isinstance(value, float) else {}
        if hasattr(value, "error"):
            flat |= {name: value.value, f"{name} error": value.error}
    return flat


def test_divergence_of_the_same_weights(files: Files, text: str) -> None:
    model, tokenizer = quantkit.load(files.rounded, context=CONTEXT)
    reference = quantkit.load_model(files.exact, context=CONTEXT)
    tokens = tokenizer.encode(text, split_special_tokens=True)
    base = LlamaCpp(files.exact)
    assert tokens == base.tokens(text)
    found = quantkit.perplexity(model, tokens, CONTEXT, WINDOWS, reference=reference)
    tool = Tool(base, LlamaCpp(files.rounded), tokens)
    ours = figures(found)
    for name, value in tool.figures().items():
        assert ours[name] == pytest.approx(value, rel=AGREEMENT), name
    divergence = found.divergence
    assert isinstance(divergence, Divergence)
    for share in (0.1, 0.5, 0.9, 0.99):
        for quantiles, values in ((divergence.kl_quantiles, tool.kld), (divergence.dp_quantiles, tool.p_diff)):
            expected = float(np.quantile(values, share))
            assert quantiles[share].value == pytest.approx(expected, rel=QUANTILE_AGREEMENT, abs=1e-4), share


def test_perplexity_of_a_quantized_file(files: Files, text: str) -> None:
    """Q8_0, of which llama.cpp rounds the activations to eight bits too."""
    model, tokenizer = quantkit.load(files.q8_0, context=CONTEXT)
    tokens = tokenizer.encode(text, split_special_tokens=True)
    found = quantkit.perplexity(model, tokens, CONTEXT, WINDOWS)
    other = LlamaCpp(files.q8_0)
    losses = []
    for logits, targets in other.windows(tokens):
        wide = logits.astype(np.float64)
        log_sums = np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1)) + wide.max(1)
        losses += (log_sums - wide[np.arange(len(targets)), targets]).tolist()
    assert found.perplexity.value == pytest.approx(math.exp(np.mean(losses)), rel=AGREEMENT)
