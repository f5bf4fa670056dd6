"""The recorded operations that keep a state per sequence. `Recorder` has them, beside all others."""

from __future__ import annotations

from quantkit.models.program import Recording, Value
from quantkit.models.recorder.checks import known, plain
from quantkit_kernels.interpreter.operations import MOST_STATES


class RecurrentOperations(Recording):
    """Records recurrent layers. Their state has a fixed size, is f32, and all zeros where a sequence begins."""

    def short_conv(
        self,
        x: Value,
        module: str,
        taps: int,
        *,
        columns: tuple[int, int] | None = None,
        bias: bool = False,
        activation: str = "identity",
    ) -> Value:
        """Causal convolution of each column by itself, over a token and the `taps - 1` before it -> `[T, columns]`.

        `activation(bias + w[0] x[t - taps + 1] + ... + w[taps - 1] x[t])`. Its weight is `[columns, 1, taps]`, as in
        Conv1d, and its role `channels`: f32 in every recipe. A sequence keeps its last `taps - 1` inputs as state.

        Parameters
        ----------
        x : Value
        module : str
        taps : int
            2 to 8: `conv_kernel`, `conv_L_cache`, `linear_conv_kernel_dim`.
        columns : (int, int), optional
            From the first up to the second of `x`; default all.
        bias : bool
            `[columns]`.
        activation : str
            One of `ACTIVATIONS`.
        """
        begin, end = columns or (0, x.columns)
        if not 2 <= taps <= 8:
            raise ValueError(f"{module}: a short convolution has 2 to 8 taps, not {taps}")
        if not 0 <= begin < end <= x.columns or not plain(x):
            raise ValueError(f"{module}: there are no columns {begin} to {end} of {x.columns} for each token")
        tensors = [self._tensor(f"{module}.weight", (end - begin, 1, taps), "channels")]
        if bias:
            tensors.append(self._tensor(f"{module}.bias", (end - begin,), "bias"))
        return self._record(
            *("short_conv", (x,), end - begin, tuple(tensors)),
            begin=begin,
            end=end,
            taps=taps,
            activation=known(activation),
        )

    def rg_lru(self, x: Value, input_gate: Value, recurrent_gate: Value, module: str) -> Value:
        """Griffin's recurrence -> `[T, x.columns]`; a channel keeps one number `h`.

        `h = a h + sqrt(1 - a²) i x`, `a = exp(-8 softplus(p) r)`, where `i` and `r` are logistic functions of the gates
        and `p` is `{module}.recurrent_param`, `[x.columns]`. The first token of a sequence is `i x`.
        """
        if {x.columns} != {gate.columns for gate in (input_gate, recurrent_gate)} or not plain(
            x, input_gate, recurrent_gate
        ):
            raise ValueError(f"{module}: gates of {input_gate.columns} and {recurrent_gate.columns} for {x.columns}")
        weight = self._tensor(f"{module}.recurrent_param", (x.columns,), "bias")
        return self._record("rg_lru", (x, input_gate, recurrent_gate), x.columns, (weight,))

    def selective_scan(self, x: Value, dt: Value, bc: Value, module: str) -> Value:
        """Mamba's recurrence -> `[T, x.columns]`; a channel keeps as many numbers `h` as `B` has columns.

        `h = exp(-exp(A_log) t) h + t x B`, `y = C h + D x`, where `t` is `softplus(dt)`. Its tensors are
        `{module}.A_log`, `[x.columns, size of h]`, and `{module}.D`, `[x.columns]`.

        Parameters
        ----------
        x, dt : Value
            A column for each channel.
        bc : Value
            The columns of `B`, then as many of `C`, which all channels share.
        module : str
        """
        size, rest = divmod(bc.columns, 2)
        if rest or not 1 <= size <= MOST_STATES or dt.columns != x.columns or not plain(x, dt, bc):
            raise ValueError(
                f"{module}: {x.columns} channels do not fit steps of {dt.columns}, B and C of {bc.columns}"
            )
        a_log = self._tensor(f"{module}.A_log", (x.columns, size), "channels")
        skip = self._tensor(f"{module}.D", (x.columns,), "bias")
        return self._record("selective_scan", (x, dt, bc), x.columns, (a_log, skip), state_size=size)

    def ssd(
        self, x: Value, dt: Value, module: str, *, head_dim: int, groups: int, limits: tuple[float, float]
    ) -> Value:
        """Mamba-2's recurrence -> `[T, heads * head_dim]`; a head keeps a matrix `h` of `[head_dim, state_size]`.

        `h = exp(-exp(A_log) t) h + (t x) B^T`, `y = h C + D x`, where `t` is `softplus(dt + dt_bias)` within `limits`.
        Its tensors are `{module}.A_log`, `{module}.dt_bias` and `{module}.D`, each `[heads]`.

        Parameters
        ----------
        x : Value
            The columns of all heads, then `B` of all groups of heads, `[groups, state_size]`, then `C`.
        dt : Value
            `[T, heads]`.
        module : str
        head_dim, groups : int
        limits : (float, float)
            The largest may be infinite.
        """
        heads = dt.columns
        state_size, rest = divmod(x.columns - heads * head_dim, 2 * groups)
        if rest or state_size < 1 or heads % groups or not plain(x, dt):
            raise ValueError(f"{module}: {x.columns} columns do not fit {heads} heads of {head_dim}, {groups} groups")
        tensors = tuple(self._tensor(f"{module}.{name}", (heads,), "bias") for name in ("A_log", "dt_bias", "D"))
        return self._record(
            *("ssd", (x, dt), heads * head_dim, tensors),
            heads=heads,
            head_dim=head_dim,
            groups=groups,
            state_size=state_size,
            dt_min=limits[0],
            dt_max=limits[1],
        )

    def delta_rule(
        self,
        x: Value,
        a: Value,
        b: Value,
        module: str,
        *,
        key_heads: int,
        key_dim: int,
        value_dim: int,
        factor: float = 1.0,
    ) -> Value:
        """The gated delta rule (Yang et al., 2024) -> `[T, value_heads * value_dim]`.

        A sequence keeps a matrix `[key_dim, value_dim]` for each value head as state. `{module}.A_log` and
        `{module}.dt_bias`, each `[value_heads]`, are learned.

        Parameters
        ----------
        x : Value
            Queries of all key heads, then keys, then the values of all value heads; queries and keys get length 1.
        a, b : Value
            `[T, value_heads]`: the decay of a head is `exp(-exp(A_log) softplus(a + dt_bias))`, and `factor` times the
            logistic function of `b` is how much of what it holds under a key is replaced.
        module : str
        key_heads, key_dim, value_dim : int
            `value_heads` is a multiple of `key_heads`.
        factor : float
        """
        heads = a.columns
        if heads != b.columns or heads % key_heads or x.columns != 2 * key_heads * key_dim + heads * value_dim:
            raise ValueError(f"{module}: {x.columns} columns are not those of {key_heads} and {heads} heads")
        if not plain(x, a, b):
            raise ValueError(f"{module}: the delta rule takes one row for each token of the batch")
        return self._record(
            *("delta_rule", (x, a, b), heads * value_dim),
            tuple(self._tensor(f"{module}.{name}", (heads,), "bias") for name in ("A_log", "dt_bias")),
            key_heads=key_heads,
            value_heads=heads,
            key_dim=key_dim,
            value_dim=value_dim,
            factor=factor,
        )
