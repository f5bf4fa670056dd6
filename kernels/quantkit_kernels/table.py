"""The table that `interpreter.py` walks: what its rows, and the words of a pass, mean. Numbers only, no numba.

A program becomes an int64 array `[steps, FIELDS]`, one row per step; `quantkit.plan` writes it. What changes from one
pass to the next (how many tokens, where they stand) is in `PASS_WORDS` words beside it; `quantkit.engine` writes those.
Both hold addresses, so only checked memory may stand in them.
"""

from __future__ import annotations

from enum import IntEnum


class Opcode(IntEnum):
    """What a step computes. Token steps give each thread some tokens; the others hand out pieces from a counter."""

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
"""Steps whose work is handed out in pieces: any thread may touch any token."""


class Field(IntEnum):
    """Words of a step. Rows of tokens are `address + token * stride`; floats are f32 bits in the low half of a word."""

    OPCODE = 0
    BARRIER = 1
    """1: every thread must have finished the steps before."""
    WANTED = 2
    """1: the step's tokens are those whose logits are wanted, not the whole batch."""
    OUT = 3
    """0: the pass's logits."""
    OUT_STRIDE = 4
    A = 5
    A_STRIDE = 6
    B = 7
    B_STRIDE = 8
    WEIGHT = 9
    ROW_SCALES = 10
    BIAS = 11
    KIND = 12
    """`blocks.Kind.code` of the weight."""
    ROWS = 13
    """Rows of the weight, or columns of the output."""
    COLUMNS = 14
    """Columns of the weight, or of the input."""
    CHUNK = 15
    """Row tiles that a thread takes at once."""
    SIZE = 16
    """Run of columns of a norm; head_dim of rope and attention; number of frequencies of a rotation."""
    LAYER = 17
    KV_HEADS = 18
    GROUP = 19
    """Query heads for each KV head; or the activation of `GATED`."""
    WINDOW = 20
    FACTOR = 21
    EPS = 22
    OFFSET = 23


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
    """One i64 for each step, 0 at the start of a pass."""
    SCRATCH = 13
    SCRATCH_BYTES = 14
    """Of each thread."""
    KV_KIND = 15
    """`blocks.Kind.code` of the cache."""
    THREADS = 16
    ARRIVED = 17
    """Where the barrier stands at the start of the pass."""
    TIMES = 18
    """0, or where to write the times of the pass: i64 nanoseconds `[threads, steps + 1, 2]`; of each thread, when it
    arrived at and when it began each step, and when it arrived at the end."""


PASS_WORDS = len(Word)
