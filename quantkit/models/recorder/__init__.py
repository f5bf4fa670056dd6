"""Recording: a family's file calls the methods of `Recorder` as if it computed.

Each call appends one operation to the program, checked against its row in `quantkit_kernels.interpreter.operations`.
`mixture.py` has those operations that send tokens to experts, `recurrent.py` those that keep a state per sequence,
`quantkit.models.program` the program, and `quantkit.models.decoder` the parts that most families share.
"""

from __future__ import annotations

import math

from quantkit.models.program import Cache, Value
from quantkit.models.recorder.checks import known, plain, positive
from quantkit.models.recorder.mixture import MixtureOperations
from quantkit.models.recorder.recurrent import RecurrentOperations
from quantkit.tensor import Role


class Recorder(MixtureOperations, RecurrentOperations):
    """Records a forward pass. Shapes are `[tokens, columns]` throughout; `T` is the number of tokens of a batch.

    Tensors are named by their module, as in the checkpoint: `"model.layers.0.mlp.up_proj"` stands for the tensor
    `model.layers.0.mlp.up_proj.weight`. What does not fit raises `ValueError`.

    Attributes
    ----------
    text_length : int, optional
        Tokens of the longest text that the program shall run, where it computes otherwise for long ones.
    """

    def __init__(self, text_length: int | None = None) -> None:
        super().__init__()
        self.text_length = text_length

    def embed(self, module: str, vocab_size: int, hidden_size: int, *, alias: str = "") -> Value:
        """Rows of the embedding table, one per token -> `[T, hidden_size]`.

        `alias` is another module under whose name a checkpoint may store the table: that of a head tied to it.
        """
        aliases = (f"{alias}.weight",) if alias else ()
        table = self._tensor(f"{module}.weight", (vocab_size, hidden_size), "embedding", aliases=aliases)
        return self._record("embed", (), hidden_size, (table,))

    def embed_positions(self, module: str, positions: int, hidden_size: int, *, offset: int = 0) -> Value:
        """Rows of a table of learned positions, one per token -> `[T, hidden_size]`.

        The table has `positions + offset` rows; position 0 is row `offset` (GPT-2: 0, OPT: 2).
        """
        table = self._tensor(f"{module}.weight", (positions + offset, hidden_size), "positions")
        return self._record("embed_positions", (), hidden_size, (table,), position_offset=offset)

    def scale(self, x: Value, factor: float) -> Value:
        """`x * factor`."""
        return self._record("scale", (x,), x.columns, factor=factor)

    def scale_columns(self, x: Value, factors: tuple[float, ...]) -> Value:
        """`x * factors`, a number for each column, such as those of several parts of a row."""
        if len(factors) != x.columns:
            raise ValueError(f"scale_columns: {len(factors)} factors for {x.columns} columns")
        return self._record("scale_columns", (x,), x.columns, constant=factors)

    def scale_by_position(self, x: Value, *, beta: float, period: int, offset: int = 0) -> Value:
        """`x * (1 + beta * log(1 + floor((position + offset) / period)))`: queries of long texts are hotter.

        Ministral 3 has an offset of 0, Llama 4 of 1.
        """
        if not plain(x):
            raise ValueError("scale_by_position: it takes one row for each token of the batch")
        if period < 1 or offset < 0:
            raise ValueError(f"scale_by_position: no position has a period of {period} and an offset of {offset}")
        return self._record("scale_by_position", (x,), x.columns, beta=beta, period=period, position_offset=offset)

    def add(self, a: Value, b: Value) -> Value:
        """`a + b`, both `[T, columns]`."""
        if a.columns != b.columns:
            raise ValueError(f"cannot add {a.columns} and {b.columns} columns")
        return self._record("add", (a, b), a.columns)

    def multiply(self, a: Value, b: Value) -> Value:
        """`a * b`, both `[T, columns]`."""
        if a.columns != b.columns:
            raise ValueError(f"cannot multiply {a.columns} and {b.columns} columns")
        return self._record("multiply", (a, b), a.columns)

    def clamp(self, x: Value, limit: float) -> Value:
        """`min(max(x, -limit), limit)`."""
        return self._record("clamp", (x,), x.columns, limit=positive("clamp", limit))

    def softcap(self, x: Value, limit: float) -> Value:
        """`limit * tanh(x / limit)`, as for the logits of Gemma 2."""
        return self._record("softcap", (x,), x.columns, limit=positive("softcap", limit))

    def slice(self, x: Value, begin: int, end: int) -> Value:
        """Columns from `begin` up to `end` -> `[T, end - begin]`."""
        if not 0 <= begin < end <= x.columns:
            raise ValueError(f"slice: there are no columns {begin} to {end} of {x.columns}")
        return self._record("slice", (x,), end - begin, begin=begin, end=end)

    def append(self, a: Value, b: Value, *, parts: int = 1) -> Value:
        """Each of `parts` equal parts of `a`, and behind every one of them all of `b`.

        By it the heads of DeepSeek's keys share columns -> `[T, a.columns + parts * b.columns]`.
        """
        if parts < 1 or a.columns % parts:
            raise ValueError(f"append: {a.columns} columns do not divide into {parts} parts")
        columns = a.columns + parts * b.columns
        return self._record("append", (a, b), columns, parts=parts, size=a.columns // parts)

    def rms_norm(
        self,
        x: Value,
        module: str | None,
        eps: float,
        *,
        size: int | None = None,
        weight_shape: tuple[int, ...] | None = None,
        offset: float = 0.0,
    ) -> Value:
        """`x / sqrt(mean(x²) + eps) * (weight + offset)`, over every `size` consecutive columns (default: all).

        Parameters
        ----------
        x : Value
        module : str or None
            None: there is no weight.
        eps : float
        size : int, optional
            `head_dim` normalizes each head by itself (Qwen3).
        weight_shape : tuple of int, optional
            Default `(size,)`: every `size` columns have the same weights. With as many numbers as `x` has columns, each
            column has its own.
        offset : float
            1 is Gemma's `(1 + w)`.
        """
        size = x.columns if size is None else size
        tensors, columns = self._affine(x, module, size, weight_shape)
        return self._record(
            "rms_norm", (x,), x.columns, tensors, size=size, weight_columns=columns, eps=eps, offset=offset
        )

    def layer_norm(
        self,
        x: Value,
        module: str | None,
        eps: float,
        *,
        size: int | None = None,
        weight_shape: tuple[int, ...] | None = None,
        bias: bool = False,
        offset: float = 0.0,
    ) -> Value:
        """`(x - mean(x)) / sqrt(variance(x) + eps) * (weight + offset) + bias`, over every `size` columns (Ba, 2016).

        Parameters as of `rms_norm`; a bias has the shape of the weight. `offset=1` is Nemotron's LayerNorm1P, a weight
        of `(heads, head_dim)` Cohere's norm of queries and keys.
        """
        size = x.columns if size is None else size
        tensors, columns = self._affine(x, module, size, weight_shape, bias=bias)
        return self._record(
            "layer_norm", (x,), x.columns, tensors, size=size, weight_columns=columns, eps=eps, offset=offset
        )

    def match_rms(self, x: Value, target: Value) -> Value:
        """`x` with the root mean square of `target`, row by row; a mean square of `x` below 1e-5 counts as that."""
        if x.columns != target.columns:
            raise ValueError(f"cannot match {x.columns} and {target.columns} columns")
        return self._record("match_rms", (x, target), x.columns)

    def sparsify(self, x: Value, factor: float) -> Value:
        """What a row has beyond its mean and `factor` of its standard deviations, zero where it has less."""
        return self._record("sparsify", (x,), x.columns, factor=factor)

    def linear(
        self,
        x: Value,
        module: str,
        rows: int,
        *,
        bias: bool = False,
        optional_bias: bool = False,
        role: Role = "linear",
    ) -> Value:
        """`x @ weight.T (+ bias)` with `weight [rows, x.columns]` -> `[T, rows]`.

        A bias that is optional stands for zeros in a checkpoint that has none.
        """
        tensors = [self._tensor(f"{module}.weight", (rows, x.columns), role)]
        if bias:
            tensors.append(self._tensor(f"{module}.bias", (rows,), "bias", optional=optional_bias))
        return self._record("linear", (x,), rows, tuple(tensors))

    def rotation(self, inverse_frequencies: tuple[float, ...], factor: float = 1.0, *, offset: int = 0) -> Value:
        """Cosines, then sines, of `(position + offset) * inverse_frequencies`, times `factor` -> `[T, 2 * len(...)]`.

        Record it once per rope variant and share it between layers.
        """
        columns = 2 * len(inverse_frequencies)
        angles = inverse_frequencies
        return self._record("rotation", (), columns, constant=angles, factor=factor, position_offset=offset)

    def rope(
        self, x: Value, rotation: Value, *, head_dim: int | None = None, begin: int = 0, interleaved: bool = False
    ) -> Value:
        """Rotary embedding of each head of `x` (Su et al., 2021).

        Parameters
        ----------
        x : Value
        rotation : Value
            As many columns of each head as it has are turned.
        head_dim : int, optional
            Default `rotation.columns`.
        begin : int
            The first of the columns that are turned.
        interleaved : bool
            Turn column `2 i` with column `2 i + 1` (GPT-J, GLM, Cohere), not column `i` with column
            `i + rotation.columns / 2` (GPT-NeoX, Llama).
        """
        head_dim = rotation.columns if head_dim is None else head_dim
        if x.columns % head_dim:
            raise ValueError(f"{x.columns} columns do not divide into heads of {head_dim}")
        if not 0 <= begin <= head_dim - rotation.columns:
            raise ValueError(f"a head of {head_dim} columns has no {rotation.columns} to rotate from {begin} on")
        return self._record(
            "rope",
            (x, rotation),
            x.columns,
            head_dim=head_dim,
            begin=begin,
            rotary_dim=rotation.columns,
            interleaved=interleaved,
        )

    def store_kv(self, k: Value, v: Value, *, head_dim: int, v_head_dim: int | None = None) -> Cache:
        """Append keys `[T, kv_heads * head_dim]` and values `[T, kv_heads * v_head_dim]` to the cache of a layer.

        The cache may be attended to by several layers. Values have the head size of keys by default; those of DeepSeek
        are narrower.
        """
        v_head_dim = head_dim if v_head_dim is None else v_head_dim
        kv_heads = k.columns // head_dim
        if (k.columns, v.columns) != (kv_heads * head_dim, kv_heads * v_head_dim) or not plain(k, v):
            raise ValueError(f"heads do not fit: k {k.columns}, v {v.columns}, head sizes {head_dim}, {v_head_dim}")
        cache = Cache(len(self._operations), kv_heads, head_dim, v_head_dim)
        return self._append("store_kv", (k, v), cache, kv_heads=kv_heads, head_dim=head_dim, v_head_dim=v_head_dim)

    def attention(
        self,
        q: Value,
        cache: Cache,
        *,
        scale: float,
        softcap: float = 0.0,
        sinks: str | None = None,
        slopes: tuple[float, ...] = (),
        window: int = 0,
        chunked: bool = False,
    ) -> Value:
        """Causal attention of each token over the cache -> `[T, heads * v_head_dim]`.

        Parameters
        ----------
        q : Value
            `[T, heads * head_dim]`, already rotated; every `heads / kv_heads` query heads share a KV head.
        cache : Cache
            Of `store_kv`, which has stored the keys and values of these tokens before.
        scale : float
            Multiplies the scores, usually `head_dim ** -0.5`.
        softcap : float
            Scores become `softcap * tanh(score / softcap)` (Gemma 2); 0 means they stay as they are.
        sinks : str, optional
            Name of a tensor `[heads]`: a learned score for each head, to which no value belongs (gpt-oss).
        slopes : tuple of float
            By how much the scores of each head fall from position to position (ALiBi); none by default.
        window : int
            A token sees itself and the `window - 1` tokens before it; 0 means all.
        chunked : bool
            A text stands in chunks of `window` tokens, and a token sees those of its own chunk alone (Llama 4).
        """
        kv_columns = cache.kv_heads * cache.head_dim
        if q.columns % kv_columns or not plain(q):
            raise ValueError(f"heads do not fit: q {q.columns}, k {kv_columns}, head_dim {cache.head_dim}")
        if slopes and (len(slopes) != q.columns // cache.head_dim or softcap):
            raise ValueError(f"attention: {len(slopes)} slopes do not fit {q.columns // cache.head_dim} heads")
        return self._record(
            "attention",
            (q, cache),
            q.columns // cache.head_dim * cache.v_head_dim,
            (self._tensor(sinks, (q.columns // cache.head_dim,), "bias"),) if sinks else (),
            slopes,
            kv_heads=cache.kv_heads,
            heads_per_kv=q.columns // kv_columns,
            head_dim=cache.head_dim,
            v_head_dim=cache.v_head_dim,
            scale=scale,
            softcap=softcap,
            window=window,
            chunked=chunked,
        )

    def gated(self, gate: Value, up: Value, activation: str) -> Value:
        """`activation(gate) * up`, with one of `ACTIVATIONS`."""
        if gate.columns != up.columns:
            raise ValueError(f"cannot gate {gate.columns} and {up.columns} columns")
        return self._record("gated", (gate, up), gate.columns, activation=known(activation))

    def gated_clamped(self, gate: Value, up: Value, *, limit: float, alpha: float = 1.0, offset: float = 0.0) -> Value:
        """`g / (1 + exp(-alpha g)) * (u + offset)`, `g = min(gate, limit)`, `u` is `up` within `-limit..limit`.

        gpt-oss has an alpha of 1.702 and an offset of 1; alpha 1 is silu.
        """
        if gate.columns != up.columns:
            raise ValueError(f"cannot gate {gate.columns} and {up.columns} columns")
        limit = positive("gated_clamped", limit)
        return self._record("gated_clamped", (gate, up), gate.columns, alpha=alpha, limit=limit, offset=offset)

    def activate(self, x: Value, activation: str) -> Value:
        """`activation(x)`, with one of `ACTIVATIONS`, for an MLP without a gate."""
        return self._record("activate", (x,), x.columns, activation=known(activation))

    def xielu(self, x: Value, module: str) -> Value:
        """The activation of Apertus, by `{module}.alpha_p`, `alpha_n`, each `[1]`, `beta` and `eps`, each a scalar."""
        shapes = {"alpha_p": (1,), "alpha_n": (1,), "beta": (), "eps": ()}
        numbers = tuple(self._tensor(f"{module}.{name}", shape, "bias") for name, shape in shapes.items())
        return self._record("xielu", (x,), x.columns, numbers)

    def select(self, x: Value) -> Value:
        """Keep only the rows whose logits are wanted -> `[wanted, columns]`."""
        if not plain(x):
            raise ValueError("select: the rows are selected already, or sorted by expert")
        return self._append("select", (x,), Value(len(self._operations), x.columns, selected=True))

    def scale_rows(self, x: Value, factors: Value) -> Value:
        """Multiply each row of `x` by the numbers that `factors` has for it, one for each of so many equal parts."""
        if x.columns % factors.columns:
            raise ValueError(f"scale_rows: {x.columns} columns do not divide into {factors.columns} parts")
        return self._record("scale_rows", (x, factors), x.columns, size=x.columns // factors.columns)

    def scale_by_weight(self, x: Value, weight: str, columns: int) -> Value:
        """Multiply each column of `x` by its own number of a tensor `[columns]`, or all by the only one of `[1]`."""
        if columns not in (1, x.columns):
            raise ValueError(f"scale_by_weight: {columns} numbers for {x.columns} columns")
        tensors = (self._tensor(weight, (columns,), "norm"),)
        return self._record("scale_by_weight", (x,), x.columns, tensors, weight_columns=columns)

    def _affine(
        self, x: Value, module: str | None, size: int, shape: tuple[int, ...] | None, *, bias: bool = False
    ) -> tuple[tuple[str, ...], int]:
        """The tensors of a norm over every `size` columns, and the columns of each."""
        if size < 1 or x.columns % size:
            raise ValueError(f"{x.columns} columns do not divide into parts of {size}")
        if module is None:
            if bias or shape:
                raise ValueError("a norm without a module has neither weight nor bias")
            return (), 0
        shape = shape or (size,)
        if math.prod(shape) not in (size, x.columns):
            raise ValueError(f"{module}: a weight of {shape} fits neither {size} nor {x.columns} columns")
        tensors = [self._tensor(f"{module}.weight", shape, "norm")]
        if bias:
            tensors.append(self._tensor(f"{module}.bias", shape, "bias"))
        return tuple(tensors), math.prod(shape)
