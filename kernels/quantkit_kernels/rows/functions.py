"""The exponential, the hyperbolic tangent and the activation functions, on f32 registers of `WIDE` lanes.

Each is a polynomial in a fixed order of fused multiply-adds, so every instruction set gives the same bits; none calls
the C library. NaN stays NaN, infinities give the limits. Small results have a small relative error, not only a small
absolute one: `gelu(-5)` is not computed as the difference of two numbers near one.
"""

from __future__ import annotations

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.simd import (
    absolute,
    add_to_exponent,
    clamp,
    copysign,
    fma,
    maximum,
    power_of_two,
    round_even,
    splat_wide,
    to_i32,
    where_less,
)

LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.693145751953125, 1.42860677e-6
"""ln 2 in two parts; the first has so few bits that its products with whole numbers are exact."""
LOWEST, HIGHEST = -104.0, 89.0
"""exp is 0 below the first, and infinite above the second."""
SMALLEST = -87.0
"""The exponential of a smaller number would not be a normal f32, which one power of two can scale."""
FLAT = 10.0
"""tanh(x) is 1 in f32 for x >= 10."""
FAR = 15.0
"""gelu(x) is 0 in f32 for x <= -15."""
SQRT_HALF = 0.7071067811865476
SQRT_2_OVER_PI = 0.7978845608028654


@jit
def _less_multiples(x, n):
    """x - n ln(2)."""
    return fma(n, splat_wide(-LN2_LOW), fma(n, splat_wide(-LN2_HIGH), x))


@jit
def _expm1_near_zero(r):
    """e**r - 1 for |r| <= ln(2) / 2: a Taylor series, whose first term left out is 3e-9."""
    p = fma(r, splat_wide(1 / 5040), splat_wide(1 / 720))
    p = fma(p, r, splat_wide(1 / 120))
    p = fma(p, r, splat_wide(1 / 24))
    p = fma(p, r, splat_wide(1 / 6))
    p = fma(p, r, splat_wide(0.5))
    return fma(p, r * r, r)


@jit
def exp(x):
    """e**x, within 1 ulp; from 0 through subnormal numbers to infinity."""
    x = clamp(x, splat_wide(LOWEST), splat_wide(HIGHEST))
    n = round_even(x * splat_wide(LOG2_E))
    p = _expm1_near_zero(_less_multiples(x, n)) + splat_wide(1.0)
    # In two steps, because 2**n itself may lie outside of f32.
    half = round_even(n * splat_wide(0.5))
    return p * power_of_two(to_i32(half)) * power_of_two(to_i32(n - half))


@jit
def expm1_negative(x):
    """e**x - 1 for -87 <= x <= 0, within 3 ulp, near 0 as well."""
    n = round_even(x * splat_wide(LOG2_E))
    power = power_of_two(to_i32(n))
    return fma(_expm1_near_zero(_less_multiples(x, n)), power, power - splat_wide(1.0))


@jit
def exp_negative(x):
    """e**x for x <= 0, within 2 ulp, 0 below -87: faster than `exp`.

    The polynomial is minimax for |r| <= ln(2) / 2, with relative error 3e-9.
    """
    n = round_even(x * splat_wide(LOG2_E))
    r = _less_multiples(x, n)
    p = fma(r, splat_wide(0.0013814599), splat_wide(0.0083687166))
    p = fma(p, r, splat_wide(0.0416683890))
    p = fma(p, r, splat_wide(0.1666652113))
    p = fma(p, r, splat_wide(0.4999999404))
    p = fma(p, r, splat_wide(1.0))
    p = fma(p, r, splat_wide(1.0))
    return where_less(x, splat_wide(SMALLEST), splat_wide(0.0), p * power_of_two(to_i32(n)))


@jit
def exp2_negative(x):
    """2**x for x <= 0, within 2 ulp, 0 below -125: for the weights of attention.

    The polynomial is minimax for |r| <= 1/2, with relative error 9e-8, and 1 at 0.
    """
    n = round_even(x)
    r = x - n
    p = fma(r, splat_wide(0.00132647273), splat_wide(0.00967151299))
    p = fma(p, r, splat_wide(0.0555073358))
    p = fma(p, r, splat_wide(0.240222424))
    p = fma(p, r, splat_wide(0.693147004))
    p = fma(p, r, splat_wide(1.0))
    return where_less(x, splat_wide(-125.0), splat_wide(0.0), add_to_exponent(p, to_i32(n)))


@jit
def tanh(x):
    """The hyperbolic tangent, within 3 ulp: -m / (m + 2), m = exp(-2 |x|) - 1, with the sign of x."""
    y = clamp(absolute(x) * splat_wide(-2.0), splat_wide(-2 * FLAT), splat_wide(0.0))
    m = expm1_negative(y)
    return copysign(m / (m + splat_wide(2.0)), x)


@jit
def _logistic(x, y):
    """x / (1 + exp(-y)), where y has the sign of x. The exponential is of a negative number, so it never overflows."""
    zero = splat_wide(0.0)
    e = exp(zero - absolute(y))
    # Clamped, because -infinity times an e of 0 would be NaN.
    return fma(clamp(x, splat_wide(LOWEST), zero), e, maximum(x, zero)) / (e + splat_wide(1.0))


@jit
def silu(x):
    """x / (1 + exp(-x)), within 4 ulp."""
    return _logistic(x, x)


@jit
def swish(x, factors):
    """x / (1 + exp(-factor x)), factors in a register: within 4 ulp where |factor x| < 1.

    Its error grows as that of exp(y) from a rounded y.
    """
    return _logistic(x, x * factors)


@jit
def quick_gelu(x):
    """`swish` by 1.702."""
    return swish(x, splat_wide(1.702))


@jit
def sigmoid(x):
    """1 / (1 + exp(-x)), within 4 ulp."""
    e = exp(splat_wide(0.0) - absolute(x))
    return where_less(x, splat_wide(0.0), e, splat_wide(1.0)) / (e + splat_wide(1.0))


@jit
def softplus(x):
    """log(1 + exp(x)), within 4 ulp: max(x, 0) + log1p(e), e = exp(-|x|).

    log1p(e) = 2 artanh(s), s = e / (e + 2), at most 1/3: a Taylor series, whose first term left out is 2e-9.
    """
    e = exp(splat_wide(0.0) - absolute(x))
    s = e / (e + splat_wide(2.0))
    square = s * s
    p = fma(square, splat_wide(2 / 15), splat_wide(2 / 13))
    p = fma(p, square, splat_wide(2 / 11))
    p = fma(p, square, splat_wide(2 / 9))
    p = fma(p, square, splat_wide(2 / 7))
    p = fma(p, square, splat_wide(2 / 5))
    p = fma(p, square, splat_wide(2 / 3))
    return fma(p * square, s, s + s) + maximum(x, splat_wide(0.0))


@jit
def relu(x):
    """x where it is positive, else 0; NaN stays NaN."""
    return where_less(x, splat_wide(0.0), splat_wide(0.0), x)


@jit
def relu2(x):
    """The square of `relu` (So et al., arXiv:2109.08668)."""
    positive = relu(x)
    return positive * positive


@jit
def gelu_tanh(x):
    """x / 2 * (1 + tanh(y / 2)), y = sqrt(8 / pi) * (x + 0.044715 x**3): a logistic function of y.

    Within 4 ulp where |y| < 1; its error grows as that of exp(y) from a rounded y.
    """
    bounded = clamp(x, splat_wide(-FAR), splat_wide(FAR))
    y = bounded * fma(bounded * bounded, splat_wide(2 * SQRT_2_OVER_PI * 0.044715), splat_wide(2 * SQRT_2_OVER_PI))
    return _logistic(x, y)


@jit
def gelu(x):
    """x / 2 * erfc(-x / sqrt(2)), within 8 ulp.

    erfc(t) = exp(-t**2) * u * P(u) for t >= 0, u = 1 / (1 + 0.4 t); P is the minimax polynomial in u - 0.5 of degree 9,
    with relative error 8e-9 for t <= 10.
    """
    size = absolute(clamp(x, splat_wide(-FAR), splat_wide(FAR)))
    t = size * splat_wide(SQRT_HALF)
    u = splat_wide(1.0) / fma(t, splat_wide(0.4), splat_wide(1.0))
    v = u - splat_wide(0.5)
    p = fma(v, splat_wide(-0.0295935441), splat_wide(0.0648380071))
    p = fma(p, v, splat_wide(0.0268923268))
    p = fma(p, v, splat_wide(-0.123052679))
    p = fma(p, v, splat_wide(-0.107783623))
    p = fma(p, v, splat_wide(0.181512237))
    p = fma(p, v, splat_wide(0.548014402))
    p = fma(p, v, splat_wide(0.726262569))
    p = fma(p, v, splat_wide(0.643721402))
    p = fma(p, v, splat_wide(0.42161274))
    # exp magnifies the rounding error of x**2 / 2, so the error is computed and corrected.
    half = size * splat_wide(0.5)
    square = half * size
    lost = fma(half, size, splat_wide(0.0) - square)
    e = exp(splat_wide(0.0) - square)
    tail = fma(e, splat_wide(0.0) - lost, e) * (u * p)
    return fma(size * splat_wide(-0.5), tail, maximum(x, splat_wide(0.0)))
