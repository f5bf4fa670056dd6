"""The recorded operations that keep a state per sequence. `Recorder` has them, beside all others."""

from __future__ import annotations

from quantkit.models.program import Recording, Value
from quantkit.models.recorder.checks import known, plain


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
        Conv1d, and its role `conv`: f32 in every recipe. A sequence keeps its last `taps - 1` inputs as state.

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
        tensors = [self._tensor(f"{module}.weight", (end - begin, 1, taps), "conv")]
        if bias:
            tensors.append(self._tensor(f"{module}.bias", (end - begin,), "bias"))
        return self._record(
            *("short_conv", (x,), end - begin, tuple(tensors)),
            begin=begin,
            end=end,
            taps=taps,
            activation=known(activation),
        )
