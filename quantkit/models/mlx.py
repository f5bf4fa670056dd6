"""How mlx-lm stores tensors where it does not as Hugging Face does: rows of `stored.py` for the folders it writes.

Its `config.json` stays that of the model. That mlx-lm has been there, a folder's own tensors say: it stacks experts,
keeps the taps of short convolutions on the second of three axes, and in some families changes numbers as well. How it
quantizes is another matter, which `quantkit.formats` knows. No file is read here.

mlx-lm, `sanitize` of `mlx_lm/models/*.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import product
from types import MappingProxyType

from quantkit.errors import UnsupportedError
from quantkit.models.stored import Fused, Named, Stored

_STACKS = ("switch_mlp", "experts", "experts.switch_glu")
_PARTS = {"gate_proj": ("gate_proj", "w1"), "up_proj": ("up_proj", "w3"), "down_proj": ("down_proj", "w2")}
"""Module in a stack of experts -> module of one expert in the program, as families call it."""

_MODULES: tuple[Fused | Named, ...] = (
    *(
        Fused(f"{stack}.{stored}", (f"experts.*.{part}",))
        for stack, (stored, parts) in product(_STACKS, _PARTS.items())
        for part in parts
    ),
    Fused("switch_mlp.fc1", ("experts.*.up_proj",)),
    Fused("switch_mlp.fc2", ("experts.*.down_proj",)),
    Named("self_attn.embed_q.weight", "self_attn.k_b_proj.weight", decoder="heads_transposed"),
    Named("self_attn.unembed_out.weight", "self_attn.v_b_proj.weight"),
)
"""What stands under another name; each counts where a folder has a tensor of that name."""

_OF_FAMILY: Mapping[str, tuple[Fused | Named, ...]] = MappingProxyType(
    {
        "exaone_moe": (Named("mlp.gate.e_score_correction_bias", "mlp.e_score_correction_bias"),),
        "granitemoehybrid": tuple(Fused(f"mlp.{part}", (f"shared_mlp.{part}",)) for part in _PARTS),
    }
)
"""The same, of names that other families have as well."""

_CONVOLUTIONS = tuple(f"{it}.weight" for it in ("conv1d", "conv_1d", "q_conv1d", "k_conv1d", "v_conv1d", "conv.conv"))
_SCALARS = ("act_fn.alpha_p", "act_fn.alpha_n")
_RESHAPED = {name: Named(name, name) for name in (*_CONVOLUTIONS, *_SCALARS)}
"""What has another shape: convolutions, `[columns, taps, 1]` instead of `[columns, 1, taps]`, and numbers that are no
vectors of one. The order of the numbers is the same."""

_NORMS = ("input_layernorm", "post_attention_layernorm", "q_norm", "k_norm", "model.norm")
_SHIFTED = tuple(Named(f"{norm}.weight", f"{norm}.weight", decoder="minus_one") for norm in _NORMS)
"""Norms that are stored with 1 added."""

_ADDS_ONE = frozenset({"qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"})

_RENAMED_BLOCKS = "model.h."
_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "ernie4_5_moe": "leaves out the biases by which experts are chosen",
        "falcon_h1": "multiplies the multipliers of the configuration into the weights",
        **dict.fromkeys(("gpt2", "gpt_neox", "gptj"), "renames all tensors"),
    }
)
"""What is not undone: the folder that was converted has all that it takes."""


def rows(model_type: str, names: Iterable[str], shape_of: Callable[[str], tuple[int, ...]]) -> tuple[Stored, ...]:
    """Return how a folder with tensors of some names stores what mlx-lm stores in its own way; nothing for any other.

    Parameters
    ----------
    model_type : str
        Of the text model.
    names : iterable of str
    shape_of : callable
        Returns the shape of a tensor; asked for those of convolutions and of the parameters of activations.

    Raises
    ------
    UnsupportedError
        mlx-lm has changed the family's tensors in a way that is not undone.
    """
    names = list(names)
    endings = {_ending(name) for name in names}
    known = (*_MODULES, *_OF_FAMILY.get(model_type, ()))
    found: list[Stored] = [row for row in known if _ending(_stored(row)) in endings]
    reshaped = {
        ending for name in names for ending in _RESHAPED if name.endswith(f".{ending}") and _is_reshaped(shape_of(name))
    }
    found += [_RESHAPED[ending] for ending in sorted(reshaped)]
    written = found or any(name.startswith(_RENAMED_BLOCKS) for name in names)
    if written and model_type in _REFUSED:
        raise UnsupportedError(
            f"config.json: a model of type {model_type!r} that mlx-lm has converted, which {_REFUSED[model_type]}, is "
            "not supported: use the folder that it converted"
        )
    shifted = model_type in _ADDS_ONE and not reshaped.isdisjoint(_CONVOLUTIONS)
    return (*found, *(_SHIFTED if shifted else ()))


def _stored(row: Fused | Named) -> str:
    return row.stored if isinstance(row, Named) else row.module + row.weight


def _ending(name: str) -> str:
    """The last words of a tensor's name, by which rows are known."""
    return ".".join(name.split(".")[-3:])


def _is_reshaped(shape: tuple[int, ...]) -> bool:
    return not shape or (len(shape) == 3 and shape[1] > 1 == shape[2])
