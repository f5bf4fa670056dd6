"""The table that `dispatch.py` walks: what its rows, and the words of a pass, mean. Numbers only, no numba.

A program becomes an int64 array `[steps, FIELDS]`, one row per step; `quantkit.engine.lowering` writes it. What changes
from one pass to the next (how many tokens, where they stand) is in `PASS_WORDS` words beside it;
`quantkit.engine.model` writes those. Both hold addresses, so only checked memory may stand in them.
"""

from __future__ import annotations

from enum import IntEnum


class Opcode(IntEnum):
    """What a step computes. Pieces of token steps are tokens, of the others row tiles, or segments of attention."""

    EMBED = 0
    SCALE = 1
    ADD = 2
    RMS_NORM = 3
    GATED = 4
    ROTATION = 5
    ROPE = 6
    STORE_KV = 7
    SELECT = 8
    QUANTIZE = 9
    LINEAR = 10
    ATTENTION = 11


SHARED = frozenset({Opcode.LINEAR, Opcode.ATTENTION})
"""Steps whose pieces are no tokens: a piece may touch any token."""


class Field(IntEnum):
    """Words of a step. Rows of tokens are `address + token * stride + thread * apart`: a row that lives only inside a
    run of token steps has stride 0 and is each thread's own. Floats are f32 bits in the low half of a word."""

    OPCODE = 0
    BARRIER = 1
    """1: all pieces of the steps before must be done."""
    WANTED = 2
    """1: the step's tokens are those whose logits are wanted, not the whole batch."""
    RUN = 3
    """Token steps from here on that no barrier parts: a thread takes each of its tokens through all of them."""
    AHEAD = 4
    """Weights of the next matrix product, for threads that wait before this step."""
    AHEAD_BYTES = 5
    OUT = 6
    """0: the pass's logits."""
    OUT_STRIDE = 7
    OUT_APART = 8
    A = 9
    A_STRIDE = 10
    A_APART = 11
    B = 12
    B_STRIDE = 13
    B_APART = 14
    WEIGHT = 15
    ROW_SCALES = 16
    BIAS = 17
    KIND = 18
    """`blocks.Kind.code` of the weight."""
    ROWS = 19
    """Rows of the weight, or columns of the output."""
    COLUMNS = 20
    """Columns of the weight, or of the input."""
    CHUNK = 21
    """Row tiles that a thread takes at once."""
    SIZE = 22
    """Run of columns of a norm; head_dim of rope and attention; number of frequencies of a rotation."""
    CACHE_OFFSET = 23
    """Bytes from the start of a KV page to the layer's keys and values."""
    KV_HEADS = 24
    GROUP = 25
    """Query heads for each KV head; or the activation of `GATED`."""
    WINDOW = 26
    FACTOR = 27
    EPS = 28
    OFFSET = 29


FIELDS = len(Field)
FLOATS = frozenset({Field.FACTOR, Field.EPS, Field.OFFSET})
"""Words that hold f32 bits."""


class Word(IntEnum):
    """Words of a pass."""

    TABLE = 0
    STEPS = 1
    TOKENS = 2
    IDS = 3
    """i64 for each token: its id."""
    POSITIONS = 4
    """i64 for each token: its position in its sequence."""
    PAGES = 5
    """i64 for each token: address of its sequence's page table."""
    WANTED = 6
    """Number of tokens whose logits are wanted."""
    WANTED_TOKENS = 7
    """i64 for each of them: which token of the batch."""
    RUNS = 8
    """Number of runs: consecutive tokens of one sequence."""
    RUN_TABLE = 9
    """4 x i64 for each run: first token, number of tokens, first position, address of the page table."""
    LOGITS = 10
    LOGITS_STRIDE = 11
    COUNTERS = 12
    """i64 `[threads + 1, steps + 1]`, see `threads.take`: how many pieces of each thread's part of a step are taken;
    then, at the first step behind each barrier, how many up to the next barrier are done; and last, how many threads
    have finished."""
    SCRATCH = 13
    SCRATCH_BYTES = 14
    """Of each thread."""
    KV_KIND = 15
    """`blocks.Kind.code` of the cache."""
    THREADS = 16
    TIMES = 17
    """0, or where to write the times of the pass: i64 nanoseconds `[threads, steps + 1, 2]`; of each thread, when it
    arrived at and when it began each step, and when it arrived at the end."""
    PARTS = 18
    """Address of memory that all threads share for attention, see `attention.parts_bytes`."""


PASS_WORDS = len(Word)
