"""The parts that decoders are put together from: embedding, attention, gated MLP, experts, head.

A family's `forward` makes its parts once, from its config, and arranges them in each layer: which norms stand where,
and what is added to what. A part that is called records its operations, under the names of tensors that most
checkpoints use. `families/` has the arrangements, `recorder/` the operations. The modules beside have the larger parts:
latent attention, recurrent layers, keys and values that layers share, and Qwen's experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.config import DecoderConfig
from quantkit.models.program import Choice, Value
from quantkit.models.recorder import Recorder
from quantkit.models.rope import parameters_of, rotary
from quantkit_kernels.interpreter.operations import MOST_EXPERTS

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
XIELU = "xielu"
"""An activation with numbers of its own in each layer: an operation by itself."""

Norm = Callable[[Value, str], Value]
"""A norm with the family's constants: `norm(x, module)`."""
FeedForward = Callable[[Value, str], Value]
"""Records what a layer does behind attention: `feed_forward(x, module)`."""


def embed(ops: Recorder, config: DecoderConfig, module: str = EMBEDDING) -> Value:
    """Rows of the embedding table -> `[T, hidden_size]`; tied to the head, it may be stored as the head."""
    alias = HEAD if config.tie_word_embeddings else ""
    return ops.embed(module, config.vocab_size, config.hidden_size, alias=alias)


def head(ops: Recorder, config: DecoderConfig, x: Value, embedding: str = EMBEDDING, *, bias: bool = False) -> Value:
    """Logits of the wanted tokens: `x` has been selected and normalized."""
    module = embedding if config.tie_word_embeddings else HEAD
    return ops.linear(x, module, config.vocab_size, bias=bias, role="head")


def rotation(ops: Recorder, config: DecoderConfig, parameters: Mapping[str, Any], head_dim: int | None = None) -> Value:
    """Cosines and sines that layers with the same rope parameters share; by default for the config's own heads."""
    partial = config.default_rotary_part is not None
    sizes = {"head_dim": head_dim or config.head_size, "context_length": config.max_position_embeddings}
    return ops.rotation(*rotary(parameters, **sizes, text_length=ops.text_length, partial=partial))


@dataclass(frozen=True)
class Attention:
    """Causal self-attention with rotary embedding: what all layers of a model have in common.

    Attributes
    ----------
    ops : Recorder
    config : DecoderConfig
        Has the number and size of the heads.
    scale : float
        Multiplies the scores, usually `head_size ** -0.5`.
    norm : Norm, optional
        Of queries and of keys before they are rotated.
    norm_names : tuple of str
        Its modules, of queries and of keys.
    norm_last : bool
        Rotate first, then normalize.
    interleaved : bool
        Rotate column `2 i` of a head with column `2 i + 1`, see `Recorder.rope`.
    softcap : float
        Limit of the scores, 0 for none, see `Recorder.attention`.
    qkv_bias, output_bias : bool
        Whether `q_proj`, `k_proj` and `v_proj`, and whether `o_proj` have a bias; that of `o_proj` may be missing, as
        where Qwen's weights bear another family's name.
    sub_norm : Norm, optional
        Of what the heads give, before `o_proj`; its module is `attn_sub_norm`.
    clip : float, optional
        Limit of queries, keys and values, in both directions.
    sinks : bool
        Whether heads have a learned score `sinks`, see `Recorder.attention`.
    slopes : tuple of float
        By how much the scores of each head fall from position to position, see `Recorder.attention`.
    chunked : bool
        Whether windows are chunks, see `Recorder.attention`.
    gate : str
        Module whose logistic function multiplies what heads have seen; "" for none.
    gate_bias : bool
    gate_by_head : bool
        Whether it has one column for each head.
    queries : callable, optional
        What else becomes of the queries, once they are rotated.
    query : str
        Module of the queries.
    """

    ops: Recorder
    config: DecoderConfig
    scale: float
    norm: Norm | None = None
    norm_names: tuple[str, str] = ("q_norm", "k_norm")
    norm_last: bool = False
    interleaved: bool = False
    softcap: float = 0.0
    qkv_bias: bool = False
    output_bias: bool = False
    sub_norm: Norm | None = None
    clip: float | None = None
    sinks: bool = False
    slopes: tuple[float, ...] = ()
    chunked: bool = False
    gate: str = ""
    gate_bias: bool = False
    gate_by_head: bool = False
    queries: Callable[[Value], Value] | None = None
    query: str = "q_proj"

    def __call__(self, x: Value, module: str, *, rotation: Value | None, window: int = 0) -> Value:
        """Record one layer's attention -> `[T, hidden_size]`; heads may stay unrotated; a window of 0 is none."""
        ops, config = self.ops, self.config
        q = ops.linear(x, f"{module}.{self.query}", config.query_columns, bias=self.qkv_bias)
        k = ops.linear(x, f"{module}.k_proj", config.kv_columns, bias=self.qkv_bias)
        v = ops.linear(x, f"{module}.v_proj", config.kv_columns, bias=self.qkv_bias)
        if self.clip is not None:
            q, k, v = (ops.clamp(heads, self.clip) for heads in (q, k, v))
        q_norm, k_norm = self.norm_names
        q = self._rotated(q, f"{module}.{q_norm}", rotation)
        k = self._rotated(k, f"{module}.{k_norm}", rotation)
        q = q if self.queries is None else self.queries(q)
        cache = ops.store_kv(k, v, head_dim=config.head_size)
        sinks = f"{module}.sinks" if self.sinks else None
        seen = ops.attention(
            q,
            cache,
            scale=self.scale,
            softcap=self.softcap,
            sinks=sinks,
            slopes=self.slopes,
            window=window,
            chunked=self.chunked,
        )
        if self.gate:
            seen = self._gated(x, seen, f"{module}.{self.gate}")
        seen = seen if self.sub_norm is None else self.sub_norm(seen, f"{module}.attn_sub_norm")
        return ops.linear(seen, f"{module}.o_proj", config.hidden_size, bias=self.output_bias, optional_bias=True)

    def _gated(self, x: Value, seen: Value, module: str) -> Value:
        if not self.gate_by_head:
            return self.ops.gated(self.ops.linear(x, module, seen.columns, bias=self.gate_bias), seen, "sigmoid")
        gate = self.ops.linear(x, module, self.config.num_attention_heads, bias=self.gate_bias)
        return self.ops.scale_rows(seen, self.ops.activate(gate, "sigmoid"))

    def _rotated(self, heads: Value, norm: str, rotation: Value | None) -> Value:
        if self.norm is not None and not self.norm_last:
            heads = self.norm(heads, norm)
        if rotation is not None:
            size = self.config.head_size
            heads = self.ops.rope(heads, rotation, head_dim=size, interleaved=self.interleaved)
        return self.norm(heads, norm) if self.norm is not None and self.norm_last else heads


@dataclass(frozen=True)
class GatedMLP:
    """`down(activation(gate(x)) * up(x))`.

    Attributes
    ----------
    ops : Recorder
    size : int
        Columns of gate and up, `intermediate_size`.
    activation : str
        The recorder's name.
    bias : bool
        Whether the three projections have a bias.
    sub_norm : Norm, optional
        Before `down_proj`; its module is `ffn_sub_norm`.
    """

    ops: Recorder
    size: int
    activation: str
    bias: bool = False
    sub_norm: Norm | None = None

    def __call__(self, x: Value, module: str) -> Value:
        """Record one layer's MLP -> `[T, x.columns]`."""
        ops = self.ops
        gate = ops.linear(x, f"{module}.gate_proj", self.size, bias=self.bias)
        up = ops.linear(x, f"{module}.up_proj", self.size, bias=self.bias)
        gated = ops.gated(gate, up, self.activation)
        gated = gated if self.sub_norm is None else self.sub_norm(gated, f"{module}.ffn_sub_norm")
        return ops.linear(gated, f"{module}.down_proj", x.columns, bias=self.bias)


@dataclass(frozen=True)
class MLP:
    """`down(activation(up(x)))`; attributes as of `GatedMLP`, whose activation may be `XIELU` as well."""

    ops: Recorder
    size: int
    activation: str
    bias: bool = False

    def __call__(self, x: Value, module: str) -> Value:
        """Record one layer's MLP -> `[T, x.columns]`."""
        up = self.ops.linear(x, f"{module}.up_proj", self.size, bias=self.bias)
        if self.activation == XIELU:
            activated = self.ops.xielu(up, f"{module}.act_fn")
        else:
            activated = self.ops.activate(up, self.activation)
        return self.ops.linear(activated, f"{module}.down_proj", x.columns, bias=self.bias)


@dataclass(frozen=True)
class Router:
    """Which experts each token goes to; it raises `CheckpointError` where they are more than there are.

    Attributes
    ----------
    ops : Recorder
    experts, top_k : int
        How many there are, and how many each token goes to.
    name : str
        Its module.
    bias : bool
        Whether its logits have a bias.
    correction : str
        Tensor that is added to scores for the choice alone, as the module of the experts names it; "" for none.
    correction_shape : tuple of int, optional
        As it is stored, by default `(experts,)`.
    scoring, normalize, factor, tolerance, groups, chosen_groups, group_best
        As of `Recorder.route`.
    """

    ops: Recorder
    experts: int
    top_k: int
    name: str = "gate"
    bias: bool = False
    correction: str = ""
    correction_shape: tuple[int, ...] | None = None
    scoring: str = "softmax"
    normalize: bool = True
    factor: float = 1.0
    tolerance: float = 0.0
    groups: int = 1
    chosen_groups: int = 1
    group_best: int = 1

    def __post_init__(self) -> None:
        if self.experts > MOST_EXPERTS:
            raise UnsupportedError(f"config.json: has {self.experts} experts; supported are up to {MOST_EXPERTS}")
        if self.experts % self.groups or not self.chosen_groups <= self.groups:
            raise CheckpointError(
                f"config.json: {self.experts} experts do not divide into {self.groups} groups, of which a token goes "
                f"to {self.chosen_groups}"
            )
        size = self.experts // self.groups
        if not 0 < self.top_k <= size * self.chosen_groups or self.group_best > size:
            where = f" in {self.chosen_groups} of {self.groups} groups" if self.groups > 1 else ""
            raise CheckpointError(
                f"config.json: a token goes to {self.top_k} experts{where}, of which there are {self.experts}"
            )

    def __call__(self, x: Value, module: str) -> Choice:
        """Record one layer's choice; `module` is that of the experts."""
        return self.ops.route(
            self.ops.linear(x, f"{module}.{self.name}", self.experts, bias=self.bias, role="router"),
            self.top_k,
            scoring=self.scoring,
            normalize=self.normalize,
            factor=self.factor,
            tolerance=self.tolerance,
            bias=f"{module}.{self.correction}" if self.correction else None,
            bias_shape=self.correction_shape,
            groups=self.groups,
            chosen_groups=self.chosen_groups,
            group_best=self.group_best,
        )


@dataclass(frozen=True)
class Experts:
    """A mixture of gated MLPs: each token goes to those that a router chooses for it.

    Attributes
    ----------
    ops : Recorder
    router : Router
    size : int
        Columns of gate and up of one expert.
    gated : Callable
        Records what is made of gate and up: `gated(gate, up)`.
    gate, up, down : str
        Modules of an expert's projections.
    bias : bool
        Whether the three projections have a bias.
    """

    ops: Recorder
    router: Router
    size: int
    gated: Callable[[Value, Value], Value]
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    bias: bool = False

    def __call__(self, x: Value, module: str) -> Value:
        """Record one layer's experts -> `[T, x.columns]`."""
        return self.chosen(x, self.router(x, module), module)

    def chosen(self, x: Value, choice: Choice, module: str) -> Value:
        """Record what the experts that were chosen make of `x`."""
        ops = self.ops
        rows = ops.gather(x, choice)
        gated = self.gated(
            self._linear(rows, choice, module, self.gate, self.size),
            self._linear(rows, choice, module, self.up, self.size),
        )
        return ops.combine(self._linear(gated, choice, module, self.down, x.columns), choice)

    def _linear(self, x: Value, choice: Choice, module: str, part: str, columns: int) -> Value:
        modules = [f"{module}.experts.{number}.{part}" for number in range(self.router.experts)]
        return self.ops.expert_linear(x, choice, modules, columns, bias=self.bias)


@dataclass(frozen=True)
class WithShared:
    """Experts, and beside them one that all tokens go to.

    Attributes
    ----------
    ops : Recorder
    experts : FeedForward
    shared : GatedMLP
    name : str
        Its module.
    gate : str
        Module of its gate, one number for each token, whose logistic function multiplies it; "" for none.
    """

    ops: Recorder
    experts: FeedForward
    shared: GatedMLP
    name: str = "shared_experts"
    gate: str = ""

    def __call__(self, x: Value, module: str) -> Value:
        """Record one layer's experts -> `[T, x.columns]`."""
        ops, shared = self.ops, self.shared(x, f"{module}.{self.name}")
        if self.gate:
            shared = ops.scale_rows(shared, ops.activate(ops.linear(x, f"{module}.{self.gate}", 1), "sigmoid"))
        return ops.add(self.experts(x, module), shared)


def pre_norm_decoder(
    ops: Recorder,
    config: DecoderConfig,
    attention: Attention,
    layers: Sequence[FeedForward],
    *,
    norm: Norm | None = None,
    rope: Mapping[str, Any] | None = None,
    module: str = "mlp",
    head_bias: bool = False,
) -> None:
    """Record a whole decoder whose layers normalize what attention and what the MLP reads.

    Parameters
    ----------
    ops, config, attention
    layers : sequence of FeedForward
        What each layer has behind attention.
    norm : Norm, optional
        Default: RMSNorm.
    rope : Mapping, optional
        Rope parameters; default: those of the config.
    module : str
        Where that stands in a layer.
    head_bias : bool
        Whether logits have a bias.
    """
    norm = norm or partial(ops.rms_norm, eps=config.rms_norm_eps)
    angles = rotation(ops, config, parameters_of(config) if rope is None else rope)
    h = embed(ops, config)
    for layer, (feed_forward, window, rotated) in enumerate(zip(layers, config.windows, config.rotated, strict=True)):
        name = f"model.layers.{layer}"
        x = norm(h, f"{name}.input_layernorm")
        h = ops.add(h, attention(x, f"{name}.self_attn", rotation=angles if rotated else None, window=window))
        h = ops.add(h, feed_forward(norm(h, f"{name}.post_attention_layernorm"), f"{name}.{module}"))
    head(ops, config, norm(ops.select(h), "model.norm"), bias=head_bias)
