"""The Fisher information of a model's layers on a text, measured by torch: how much the predictions feel each output.

For each window, torch runs the checkpoint forward, draws a next token for every position from what the model itself
predicts, and takes the gradient of their log likelihood back to the outputs of each linear layer. It is the one part of
quantkit that needs torch and transformers (extra `end-to-end`), since transformers has every family and torch its
derivatives. Weights of which transformers makes no module of their own, as most experts are, have no entry.

`fisher.py` says what is found, `layers.py` packs with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import UnsupportedError, notice
from quantkit.formats.source import ModelSource
from quantkit.quantization.calibration.fisher import LARGE, Fisher, row_blocks
from quantkit.tensor import TensorSpec

logger = logging.getLogger(__name__)

SEED = 0
"""Of the tokens that are drawn."""


def check_gradients(source: ModelSource) -> None:
    """Raise what stands against measuring a checkpoint, before anything is read.

    Raises
    ------
    UnsupportedError
        It is no folder of 16-bit or 32-bit weights, or transformers does not know the architecture.
    """
    if not source.path.is_dir():
        raise UnsupportedError(f"{source.path}: method end-to-end needs a checkpoint folder, which transformers reads")
    if any(source.config.get(key) for key in ("quantization_config", "quantization")):
        raise UnsupportedError(
            f"{source.path}: its weights are quantized; method end-to-end needs the checkpoint that they were made of"
        )
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(source.path, local_files_only=True, trust_remote_code=False)
        known = type(config) in transformers.AutoModelForCausalLM._model_mapping
    except (KeyError, OSError, ValueError):
        known = False
    if not known:
        kind = source.config.get("model_type")
        raise UnsupportedError(
            f"{source.path}: method end-to-end: transformers {transformers.__version__} has no language model {kind!r}"
        )


def measure_fisher(
    source: ModelSource,
    specs: Mapping[str, TensorSpec],
    windows: Sequence[Sequence[int]],
    threads: int,
    tell: Callable[[int], None] = lambda number: None,
) -> dict[str, Fisher]:
    """Measure the Fisher information at the outputs of matrices.

    Parameters
    ----------
    source : ModelSource
        Such as `check_gradients` lets pass.
    specs : Mapping of str to TensorSpec
        The matrices, `[outputs, inputs]`.
    windows : sequence of sequence of int
        The text: token ids, as many in each.
    threads : int
        Of torch.
    tell : callable, optional
        Called with the number of windows that are done.

    Returns
    -------
    dict
        By the names of the matrices; one that is no module of transformers', or whose outputs do not matter, is
        missing.

    Raises
    ------
    UnsupportedError
        When none of the matrices is a module of transformers'.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = _load(source, specs)
        found = _Measuring(model, specs)
        if not found.names:
            raise UnsupportedError(f"{source.path}: method end-to-end: transformers has none of the matrices by itself")
        if left := [name for name in specs if name not in found.names]:
            notice(logger, f"{len(left)} matrices are no modules of transformers', such as {left[0]}: no gradients")
        generator = torch.Generator().manual_seed(SEED)
        for number, window in enumerate(windows, 1):
            found.add(model, torch.tensor([list(window)]), generator)
            tell(number)
        return found.result(len(windows) * len(windows[0]))
    finally:
        torch.set_num_threads(before)


def _load(source: ModelSource, specs: Mapping[str, TensorSpec]) -> Any:
    """The model of transformers, whose weights are constants and whose embedding is what gradients go back to."""
    import torch
    import transformers

    large = 4 * sum(spec.weights for spec in specs.values()) > LARGE
    dtype = torch.bfloat16 if large or _multiplies_bf16() else torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source.path, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
    ).eval()
    model.requires_grad_(False)
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.requires_grad_())
    return model


def _multiplies_bf16() -> bool:
    """Whether the machine has products of bf16 of its own, which take half the time then."""
    import torch

    has = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(has and has())


class _Measuring:
    """Sums of gradients at the outputs of the modules of a model, window after window.

    Attributes
    ----------
    names : set of str
        The matrices that are modules.
    """

    def __init__(self, model: Any, specs: Mapping[str, TensorSpec]) -> None:
        self._tokens: dict[str, list[Any]] = {}
        self._outputs: dict[str, list[Any]] = {}
        self._met: set[str] = set()
        for name, spec in specs.items():
            module, rows = _module_of(model, spec)
            if module is not None:
                module.register_forward_hook(self._hook(name, rows))
                self._tokens[name], self._outputs[name] = [], []
        self.names = set(self._tokens)

    def _hook(self, name: str, rows: NDArray[np.intp]) -> Callable[[Any, Any, Any], None]:
        def add(gradient: Any) -> None:
            at = gradient.reshape(-1, gradient.shape[-1])[:, rows]
            self._tokens[name].append(at.float().square().mean(-1))
            moments = [(at[:, block].T @ at[:, block]).float() for block in row_blocks(len(rows))]
            before = self._outputs[name]
            self._outputs[name] = [sum(pair) for pair in zip(before, moments, strict=True)] if before else moments

        def hook(module: Any, inputs: Any, output: Any) -> None:
            if name not in self._met:  # a weight that layers share counts where it is calibrated, at its first use
                self._met.add(name)
                output.register_hook(add)

        return hook

    def add(self, model: Any, ids: Any, generator: Any) -> None:
        """Take the gradients of a window."""
        import torch

        self._met.clear()
        logits = model(input_ids=ids, use_cache=False).logits[0].float()
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        torch.nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()

    def result(self, count: int) -> dict[str, Fisher]:
        """Return the sums, by the names of matrices that met all tokens, where they are finite and not zero."""
        found = {}
        for name, parts in self._tokens.items():
            tokens = np.concatenate([np.zeros(0, np.float32), *(part.numpy() for part in parts)])
            mean = tokens.sum(dtype=np.float64) / count
            if len(tokens) == count and 0 < mean < np.inf:
                outputs = [block.numpy() / np.float32(mean) for block in self._outputs[name]]
                tempered = np.sqrt(tokens / mean)  # single draws are noisy; untempered, few tokens decide
                found[name] = Fisher((tempered / tempered.mean()).astype(np.float32), outputs)
        return found


def _module_of(model: Any, spec: TensorSpec) -> tuple[Any, NDArray[np.intp]]:
    """Return the module whose outputs a matrix makes, and which of them its rows are; None where there is no such."""
    outputs = spec.shape[0]
    for name in (spec.name, *spec.aliases):
        module = _only(model, name)
        if module is not None and sorted(module.weight.shape) == sorted(spec.shape):
            tied = module is model.get_input_embeddings()  # packed as the head is
            return model.get_output_embeddings() if tied else module, np.arange(outputs)
    for piece in spec.pieces[: len(spec.pieces) == 1]:
        module = _only(model, piece.name)
        if module is None or sorted(module.weight.shape) != sorted(piece.shape) or piece.decoder:
            continue
        rows = np.arange(piece.shape[-1] if piece.transposed else piece.shape[0])
        of_rows = piece if not piece.columns else replace(piece, order=(), columns=False)
        return module, of_rows.view(rows[None, :] if piece.transposed else rows[:, None]).reshape(-1)
    return None, np.arange(0)


def _only(model: Any, tensor: str) -> Any:
    """The one module whose weight has a name that ends so."""
    path = f".{tensor.removesuffix('.weight')}"
    found = [
        module for name, module in model.named_modules() if f".{name}".endswith(path) and hasattr(module, "weight")
    ]
    return found[0] if len(found) == 1 and tensor.endswith(".weight") else None
