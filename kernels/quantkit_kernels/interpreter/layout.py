"""What the interpreter reads from memory: the steps of a program, and the pass at hand. numpy alone, no numba.

A program becomes an array of `STEP` records, one for each step; `quantkit.engine.lowering` writes it. What changes from
one pass to the next (how many tokens, where they stand) is one `PASS` record beside it, which `quantkit.engine.model`
writes. Both hold addresses, so only checked memory may stand in them. Kernels read the fields by name
(`simd.record_at`), which compiles to the same loads as byte offsets written by hand.
"""

from __future__ import annotations

import numpy as np

ROWS = np.dtype([("address", "i8"), ("stride", "i8"), ("thread_stride", "i8")])
"""Rows of a value: that of a token stands at `address + token * stride + thread * thread_stride`. A thread-local row
has stride 0: it lives only inside of a fused sequence of token steps."""

STEP = np.dtype(
    [
        ("kernel", "i8"),  # address of the compiled function of its operation, `kernels.py`
        ("shared", "i8"),  # 1: the kernel shares the work of a whole pass out itself; 0: it takes one token
        ("barrier", "i8"),  # 1: all pieces of the steps before must be done
        ("wanted", "i8"),  # 1: its tokens are those whose logits are wanted, not the whole batch
        ("per_token", "i8"),  # rows for each token: more than one where they are sorted by expert
        ("fused", "i8"),  # token steps from here on that a thread takes each of its tokens through, itself included
        ("prefetch", "i8"),  # weights of the next matrix product, for threads that wait before this step
        ("prefetch_bytes", "i8"),
        ("out", ROWS),
        ("a", ROWS),  # first input
        ("b", ROWS),  # second input
        ("c", ROWS),  # third input
        ("row_bytes", "i8"),  # of a row that is gathered
        ("in_columns", "i8"),  # of the first input
        ("out_columns", "i8"),
        ("weight", "i8"),  # address of a tensor, 0 for none
        ("row_scales", "i8"),
        ("kind", "i8"),  # blocks.Kind.code of the weight
        ("product", "i8"),  # address of the compiled matrix product of that kind, `linear.product`
        ("bias", "i8"),
        ("sinks", "i8"),
        ("a_log", "i8"),  # of recurrent layers: addresses of a number for each head
        ("dt_bias", "i8"),
        ("skip", "i8"),
        ("alpha_p", "i8"),  # of xielu: addresses of a number each
        ("alpha_n", "i8"),
        ("xielu_beta", "i8"),
        ("xielu_eps", "i8"),
        ("constant", "i8"),  # address of f32 numbers
        ("tiles", "i8"),  # row tiles that a thread takes at once
        ("cache_offset", "i8"),  # of the layer in a page of the KV cache, in bytes
        ("size", "i8"),  # columns of a part: that a norm normalizes together, that append puts the second input behind
        ("parts", "i8"),  # of a row that append takes
        ("state_offset", "i8"),  # of the step in a sequence's state, in bytes
        ("advance", "i8"),  # address of the compiled function that advances it, `recurrent.py`
        ("units", "i8"),  # slices of that state that need no other
        ("unit_bytes", "i8"),
        ("weight_columns", "i8"),  # numbers of its weight, 0 for no weight
        ("head_dim", "i8"),
        ("v_head_dim", "i8"),  # of values, which may differ from that of keys
        ("rotary_dim", "i8"),  # columns of a head that rope turns, from `begin` on
        ("interleaved", "i8"),  # 1: rope turns neighbours, not column i with column i + rotary_dim / 2
        ("kv_heads", "i8"),
        ("heads_per_kv", "i8"),
        ("window", "i8"),  # positions that a query sees, 0 for all
        ("chunked", "i8"),  # 1: those are the ones in its own chunk of so many
        ("activation", "i8"),  # place in operations.ACTIVATIONS
        ("heads", "i8"),  # of a state
        ("state_size", "i8"),  # columns of a head's state
        ("taps", "i8"),  # tokens that a short convolution sees
        ("key_heads", "i8"),  # of a delta rule
        ("value_heads", "i8"),
        ("key_dim", "i8"),
        ("value_dim", "i8"),
        ("begin", "i8"),  # columns that a step takes of its input, and from where on rope turns those of a head
        ("end", "i8"),
        ("period", "i8"),  # positions that scale_by_position treats alike
        ("position_offset", "i8"),  # added to positions
        ("experts", "i8"),  # how many
        ("top_k", "i8"),  # experts of a token
        ("scoring", "i8"),  # place in operations.SCORINGS
        ("groups", "i8"),  # of experts
        ("chosen_groups", "i8"),
        ("group_best", "i8"),  # experts whose scores make that of a group
        ("normalize", "i8"),  # 1: the weights of a token's experts sum to 1
        ("factor", "f4"),
        ("tolerance", "f4"),  # how far from the best a score may be, relative to the larger of both
        ("scale", "f4"),
        ("softcap", "f4"),  # limit that scores approach, 0 for none
        ("eps", "f4"),
        ("offset", "f4"),
        ("limit", "f4"),
        ("alpha", "f4"),
        ("beta", "f4"),
        ("dt_min", "f4"),  # limits of the steps of a state
        ("dt_max", "f4"),
    ],
    align=True,
)

CHUNK = np.dtype(
    [
        ("first", "i8"),  # number of the first token in the batch
        ("tokens", "i8"),
        ("position", "i8"),  # of the first token in its sequence
        ("pages", "i8"),  # address of the sequence's page table
        ("wanted", "i8"),  # how many tokens, the last ones, whose logits are wanted
        ("state", "i8"),  # address of the sequence's state, 0 for none
        ("fresh", "i8"),  # 1: its state is all zeros, whatever stands there
        ("kept", "i8"),  # tokens that advance it; it is then left as it is
        ("ahead", "i8"),  # address of a copy of it that the other tokens advance, if there are any
        ("choice", "i8"),  # address of a rows.choice.CHOICE that the last token's logits are for, 0 for none
    ]
)
"""The new tokens of one sequence in a pass, where its keys, values and state lie, and how its next token is chosen."""

PART = np.dtype(
    [
        ("thread", "i8"),
        ("threads", "i8"),
        ("tag", "i8"),  # of the pass's counters
        ("counter_stride", "i8"),  # bytes between the counters of one thread's share of a step and the next thread's
        ("tokens", "i8"),
        ("wanted", "i8"),  # tokens whose logits are wanted
        ("spans", "i8"),  # of attention
        ("chunks", "i8"),
        ("words", "i8"),  # address of the `PASS`
        ("shared", "i8"),  # address of what the threads of a pool share, `threads.Shared`
        ("generation", "i8"),  # of the pass
    ]
)
"""A thread's part in a pass, on its own stack: what it may rely on when the `PASS` already describes a later one."""

PASS = np.dtype(
    [
        ("steps", "i8"),  # address of the program's `STEP`s
        ("step_count", "i8"),
        ("threads", "i8"),
        ("chunks", "i8"),  # how many: all new tokens of one sequence
        ("chunk_table", "i8"),  # address of a `CHUNK` for each
        ("ids", "i8"),  # address of an i64 for each token: its id
        ("tokens", "i8"),  # written by the pass from its chunks, as all up to `span_table`: how many tokens
        ("positions", "i8"),  # address of an i64 for each token: its position in its sequence
        ("pages", "i8"),  # the same: address of its sequence's page table
        ("wanted", "i8"),  # how many tokens' logits are wanted
        ("wanted_tokens", "i8"),  # address of an i64 for each of them: which token of the batch
        ("choices", "i8"),  # how many chunks have a choice
        ("spans", "i8"),  # how many: consecutive tokens of one sequence
        ("span_table", "i8"),  # address of 4 x i64 for each: attention.operands.Span
        ("choose", "i8"),  # address of the compiled `rows.choice.choose`
        ("kv_kind", "i8"),  # of attention.pages.CODES
        ("scratch", "i8"),  # address of memory for attention, `scratch_bytes` for each thread
        ("scratch_bytes", "i8"),
        ("partials", "i8"),  # address of memory that threads share for attention
        ("counters", "i8"),  # address of i64 `[threads + 1, step_count + 1]`, see below
        ("times", "i8"),  # 0, or where to write the times of the pass, and add them up, see below
    ]
)
"""`counters`: how many pieces of each thread's share of a step are taken (`threads.take`); then, at the first step
behind each barrier, how many up to the next barrier are done; and last, how many threads have finished.

`times`: i64 nanoseconds `[2, threads, step_count + 1, 2]`. First: of each thread, when it arrived at and when it began
each step, and when it arrived at the end. Then sums of all passes: how long it waited before each step and worked on
it, and how long it waited at the end."""
