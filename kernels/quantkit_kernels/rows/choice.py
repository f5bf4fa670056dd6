"""The choice of a token by a row of logits: top-k, top-p, min-p, temperature, and a random number.

Passes end with it where a sequence asks for that (`interpreter.shared_steps`); `quantkit.generation.sampling` calls it
for any other row. Few tokens of a vocabulary matter, so no more are looked at one by one. A row is read for its maxima,
of each block of columns, which threads share in a pass, and for its sum of exponentials where something asks for that.
Tokens are then ranked in bands of falling logits: a block whose maximum lies below a band is skipped, and a heap hands
out the tokens of a band, the likeliest first, until there are enough.

Exponentials are those of `functions.py`, sums are f64 and have one order, so that every instruction set chooses the
same token.
"""

from __future__ import annotations

import ctypes
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantkit_kernels.compile.jit import jit
from quantkit_kernels.rows.functions import exp_negative
from quantkit_kernels.rows.lines import line_at
from quantkit_kernels.simd import (
    get_f32,
    get_i32,
    get_i64,
    load_line_f32,
    max_lanes,
    maximum,
    put_f32,
    put_i32,
    put_i64,
    record_at,
    splat_wide,
    stack_f32,
    store,
    sum_lanes,
    where_less,
)

BLOCK = 128
"""Columns that have one maximum and one sum."""
NEVER = -math.inf
"""A logit of no probability, in place of columns that are not there."""
FIRST_DEPTH, DEEPENING, LAST_DEPTH = 2.0, 1.5, 100.0
"""How far below the greatest logit the first band ends, how many times as far each further one, and when one takes all
that is left: exp(-100) is nothing to f32."""
HOTTEST = 1e30
"""A temperature whose reciprocal is a normal f32; all that are higher give the same."""
LINE = 16
"""f32 of a register."""
NO_TOKEN = -1
"""In place of a token: the greatest logit is NaN or infinite, or there is none; or no pass has chosen."""

CHOICE = np.dtype(
    [
        ("row", "i8"),  # address of f32 `[columns]`
        ("columns", "i8"),
        ("maxima", "i8"),  # address of f32 for each block, see `block_maximum`; 0: not known
        ("token", "i8"),  # what the last pass has chosen; or `NO_TOKEN`
        ("memory", "i8"),  # address of `_memory_bytes(columns)`
        ("top_k", "i8"),  # 0: all
        ("top_p", "f8"),  # 1: all
        ("least", "f8"),  # how far below the greatest logit another may be: the logarithm of min-p
        ("coldness", "f8"),  # reciprocal of the temperature
        ("uniform", "f8"),  # random number, from 0 up and below 1
    ]
)
"""What is to be chosen from, and how."""
choice_at = record_at(CHOICE)
_BYTE = ctypes.c_char


class Row(NamedTuple):
    """A row of logits, and what is known of it."""

    x: int
    """Address of f32 `[columns]`."""
    columns: int
    maxima: int
    """Address of f32 for each block: its greatest logit."""
    greatest: float
    """Of all; finite."""


class Ranking(NamedTuple):
    """Addresses of memory for tokens in order, as many as the row has columns, and whole lines."""

    heap: int
    """i64, see `_key`."""
    tokens: int
    """i32."""
    scores: int
    """f32: logit less the greatest one."""
    weights: int
    """f32: exponentials of the scores, or of what they become by the temperature."""


class Chooser:
    """Chooses tokens, with memory of its own: not for two threads at once.

    Parameters
    ----------
    temp, top_p, min_p, top_k
        As of `quantkit.generation.sampling.make_sampler`; `temp` is above 0.

    Attributes
    ----------
    uniform : memoryview
        One random number from 0 up and below 1, by which the next pass chooses.
    token : memoryview
        One token: what the last pass has chosen, or `NO_TOKEN`.
    """

    def __init__(self, temp: float, top_p: float, min_p: float, top_k: int) -> None:
        words = np.zeros(1, CHOICE)
        words["top_k"], words["top_p"], words["least"] = top_k, top_p, math.log(min_p) if min_p > 0 else NEVER
        words["coldness"], words["token"] = 1 / min(temp, HOTTEST), NO_TOKEN
        self._words = words
        self._row, self._maxima, self._memory = (words[name].data for name in ("row", "maxima", "memory"))
        self._columns = words["columns"].data
        self.uniform: memoryview[float] = words["uniform"].data
        self.token: memoryview[int] = words["token"].data
        self._room = np.empty(0, np.uint8)
        self._choose = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(choose.address)
        self._address = int(words.ctypes.data)

    def __call__(self, logits: NDArray[np.float32], uniform: float) -> int:
        """Return a token, or `NO_TOKEN`.

        Parameters
        ----------
        logits : ndarray
            f32 `[vocab_size]`.
        uniform : float
            A random number from 0 up and below 1. It falls on a token by the cumulative probability: in the order of
            likelihood, then of ids, if top-k or top-p is on; else in that of ids.
        """
        address = self.address(logits.size)
        try:
            self._row[0] = ctypes.addressof(_BYTE.from_buffer(logits))
        except (TypeError, ValueError):  # not writable or not contiguous: this takes ten times as long
            logits = np.ascontiguousarray(logits)
            self._row[0] = logits.ctypes.data
        self._maxima[0] = 0
        self.uniform[0] = uniform
        return self._choose(address)

    def address(self, columns: int) -> int:
        """Address of a `CHOICE` for rows of so many columns: that of a `layout.CHUNK`, by which a pass chooses."""
        if columns != self._columns[0]:
            self._room = np.empty(_memory_bytes(columns), np.uint8)
            self._memory[0], self._columns[0] = self._room.ctypes.data, columns
        return self._address


def _memory_bytes(columns: int) -> int:
    """Of what `choose` needs: a `Ranking`, then a sum and a maximum for each block."""
    return (8 + 4 + 4 + 4) * (columns + LINE) + (4 + 4) * -(-columns // BLOCK)


@jit(entry=True)
def choose(words):
    """The token that the `CHOICE` at `words` falls on, or `NO_TOKEN`."""
    asked = choice_at(words)
    columns, room, blocks = asked.columns, asked.columns + LINE, blocks_of(asked.columns)
    heap = asked.memory
    ranking = Ranking(heap, heap + 8 * room, heap + 12 * room, heap + 16 * room)
    sums, maxima = heap + 20 * room, asked.maxima
    if not maxima:
        maxima = sums + 4 * blocks
        for block in range(blocks):
            put_f32(maxima + 4 * block, block_maximum(asked.row, columns, block))
    greatest = _greatest(maxima, blocks)
    if not NEVER < greatest < np.inf:
        return NO_TOKEN
    row = Row(asked.row, columns, maxima, greatest)
    if asked.top_k == 1:
        return _first_of_greatest(row)
    if 0 < asked.top_k < columns:
        count = _rank(row, ranking, asked.top_k, np.inf, NEVER)
        wanted = asked.top_p * _sum_f32(ranking.weights, count) if asked.top_p < 1 else np.inf
        count = _cut(ranking, count, wanted, asked.least)
    elif asked.top_p < 1:
        count = _rank(row, ranking, columns, asked.top_p * _sum_exp(row, 1.0, NEVER, sums), asked.least)
    else:
        target = asked.uniform * _sum_exp(row, asked.coldness, asked.least, sums)
        return _draw_by_id(row, asked.coldness, asked.least, sums, target)
    return np.int64(get_i32(ranking.tokens + 4 * _draw(ranking, count, asked.coldness, asked.uniform)))


# --- of a whole row ------------------------------------------------------------------------------------------------


@jit
def blocks_of(columns):
    """Blocks of a row."""
    return (columns + BLOCK - 1) // BLOCK


@jit
def block_maximum(x, columns, block):
    """The greatest logit of a block of a row; infinity where one is NaN."""
    end, begin = 4 * columns, 4 * BLOCK * block
    infinity, found = splat_wide(np.inf), splat_wide(NEVER)
    for place in range(begin, min(begin + 4 * BLOCK, end), 64):
        line = line_at(x, place, end, NEVER)
        line = where_less(line, infinity, line, infinity)
        found = where_less(found, line, line, found)
    return max_lanes(found)


@jit
def _greatest(maxima, blocks):
    """The greatest of the maxima."""
    found = splat_wide(NEVER)
    for place in range(0, 4 * blocks, 64):
        found = maximum(found, line_at(maxima, place, 4 * blocks, NEVER))
    return np.float64(max_lanes(found))


@jit
def _first_of_greatest(row):
    """The lowest column that holds the greatest logit: first its block, then inside."""
    block = 0
    while get_f32(row.maxima + 4 * block) < row.greatest:
        block += 1
    column = BLOCK * block
    while get_f32(row.x + 4 * column) < row.greatest:
        column += 1
    return column


@jit
def _weights(row, place, coldness, least):
    """Weights of 16 columns: 0 for those whose score is below `least`."""
    scores = line_at(row.x, place, 4 * row.columns, NEVER) - splat_wide(row.greatest)
    weights = exp_negative(scores * splat_wide(coldness))
    return where_less(scores, splat_wide(least), splat_wide(0.0), weights)


@jit
def _sum_exp(row, coldness, least, sums):
    """Write the sum of the weights of each block, f32; returns that of all, f64."""
    total, end = 0.0, 4 * row.columns
    for number in range(blocks_of(row.columns)):
        begin, block = 4 * BLOCK * number, splat_wide(0.0)
        if np.float32(get_f32(row.maxima + 4 * number) - np.float32(row.greatest)) >= least:
            for place in range(begin, min(begin + 4 * BLOCK, end), 64):
                block = block + _weights(row, place, coldness, least)
        summed = sum_lanes(block)
        put_f32(sums + 4 * number, summed)
        total += np.float64(summed)
    return total


@jit
def _draw_by_id(row, coldness, least, sums, target):
    """The first token whose weight and those before it come to more than `target`: first its block, then inside."""
    before, chosen, start = 0.0, 0, 0.0
    for block in range(blocks_of(row.columns)):
        summed = np.float64(get_f32(sums + 4 * block))
        if summed > 0:
            chosen, start = block, before
        before += summed
        if before > target:
            break
    weights, begin = stack_f32(BLOCK), BLOCK * chosen
    count = min(BLOCK, row.columns - begin)
    for place in range(0, 4 * count, 64):
        store(weights + place, _weights(row, 4 * begin + place, coldness, least))
    return begin + _invert(weights, count, target - start)


# --- of ranked tokens ----------------------------------------------------------------------------------------------


@jit
def _rank(row, ranking, most, wanted, least):
    """Rank tokens until there are `most`, or their weights come to `wanted`, or scores fall below `least`.

    Returns how many; logits that are negative infinity have no rank.
    """
    count, mass, depth = 0, 0.0, FIRST_DEPTH
    ceiling = np.float32(np.inf)
    while ceiling > NEVER:
        floor = np.float32(row.greatest - depth if depth < LAST_DEPTH else NEVER)
        size = _collect(row, floor, ceiling, ranking.heap)
        ceiling, depth = floor, depth * DEEPENING
        for place in range(size // 2 - 1, -1, -1):
            _sink(ranking.heap, place, size, get_i64(ranking.heap + 8 * place))
        while size:
            token = _token_of(get_i64(ranking.heap))
            score = np.float32(get_f32(row.x + 4 * token) - np.float32(row.greatest))
            if count == most or mass >= wanted or score < least:
                return count
            size -= 1
            _sink(ranking.heap, 0, size, get_i64(ranking.heap + 8 * size))
            put_i32(ranking.tokens + 4 * count, token)
            put_f32(ranking.scores + 4 * count, score)
            weight = max_lanes(exp_negative(splat_wide(score)))
            put_f32(ranking.weights + 4 * count, weight)
            mass += np.float64(weight)
            count += 1
    return count


@jit
def _collect(row, floor, ceiling, heap):
    """Write the keys of the finite logits from `floor` on and below `ceiling`; returns how many there are."""
    count, end = 0, 4 * row.columns
    for block in range(blocks_of(row.columns)):
        if get_f32(row.maxima + 4 * block) < floor:
            continue
        begin = 4 * BLOCK * block
        for line in range(begin, min(begin + 4 * BLOCK, end), 64):
            if max_lanes(line_at(row.x, line, end, NEVER)) < floor:
                continue
            for place in range(line, min(line + 64, end), 4):
                logit = get_f32(row.x + place)
                if floor <= logit < ceiling and logit > NEVER:
                    put_i64(heap + 8 * count, _key(get_i32(row.x + place), place // 4))
                    count += 1
    return count


@jit
def _key(bits, column):
    """A number that is greater for a greater logit, of these `bits`, and among equal ones for a lower column."""
    high = np.int64(bits)
    if high == -0x80000000:  # -0 is 0
        high = 0
    if high < 0:
        high ^= 0x7FFFFFFF
    return high << 32 | (0xFFFFFFFF - column)


@jit
def _token_of(key):
    return 0xFFFFFFFF - (key & 0xFFFFFFFF)


@jit
def _sink(heap, place, size, key):
    """Put a key into a heap of `size` keys, whose greatest stands first, at `place` or below it."""
    while 2 * place + 1 < size:
        child = heap + 8 * (2 * place + 1)
        if 2 * place + 2 < size and get_i64(child + 8) > get_i64(child):
            child += 8
        if get_i64(child) <= key:
            break
        put_i64(heap + 8 * place, get_i64(child))
        place = (child - heap) >> 3
    put_i64(heap + 8 * place, key)


@jit
def _cut(ranking, count, wanted, least):
    """How many of the first tokens remain: their weights come to `wanted`, and no score is below `least`."""
    mass = 0.0
    for rank in range(count):
        if mass >= wanted or get_f32(ranking.scores + 4 * rank) < least:
            return rank
        mass += np.float64(get_f32(ranking.weights + 4 * rank))
    return count


@jit
def _draw(ranking, count, coldness, uniform):
    """The rank on which a random number falls."""
    for place in range(0, 4 * count, 64):
        scores = load_line_f32(ranking.scores + place)
        store(ranking.weights + place, exp_negative(scores * splat_wide(coldness)))
    return _invert(ranking.weights, count, uniform * _sum_f32(ranking.weights, count))


@jit
def _sum_f32(weights, count):
    """Their sum, f64, one after the other."""
    total = 0.0
    for place in range(weights, weights + 4 * count, 4):
        total += np.float64(get_f32(place))
    return total


@jit
def _invert(weights, count, target):
    """The first whose weight and those before it come to more than `target`, or the last that has any."""
    chosen, before = 0, 0.0
    for number in range(count):
        weight = get_f32(weights + 4 * number)
        if weight > 0:
            chosen = number
        before += np.float64(weight)
        if before > target:
            break
    return chosen
