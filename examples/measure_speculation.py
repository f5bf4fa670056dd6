"""What `--speculate` is worth: the same answers with and without drafts, in turn, on prompts of three kinds.

    python examples/measure_speculation.py PACKED_FOLDER [--speculate 16] [--threads 2] [--repetitions 5]

`edit` and `repeat` ask for what is in their prompts, more or less, and are answered greedily; `story` has nothing to
copy from and is sampled at temperature 1. The tokens of both answers are compared: they must be the same. Speeds are
those of the answer alone, in tokens per second, medians; ratios are taken turn by turn.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import quantkit
from quantkit.cli.text import table_line

MOST_TOKENS = 192
CODE = '''\
class Account:
    """A bank account with a history of its transactions."""

    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance
        self.history = []

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError("the amount must be positive")
        self.balance += amount
        self.history.append(("deposit", amount))

    def withdraw(self, amount):
        if amount > self.balance:
            raise ValueError("the balance is too low")
        self.balance -= amount
        self.history.append(("withdraw", amount))
'''
TEXT = """\
The river rises in the northern hills, where three small streams meet below an old stone bridge. From there it runs \
south for ninety miles through farmland and beech woods, past the market towns of Ellwick and Marden, and reaches the \
sea at a harbour that silted up two centuries ago. Barges once carried wool and barley down to the coast and brought \
back coal, salt and news. Today only anglers and a few rowing clubs use the water, and the towpath is a cycle route."""
PROMPTS = {
    "edit": f"Here is a Python class:\n\n```python\n{CODE}```\n\nRename the class to `Wallet` and print the complete "
    "code.",
    "repeat": f"{TEXT}\n\nRepeat the text above.",
    "story": "Write a short story about a lighthouse keeper who finds a letter.",
}
WIDTHS = {"prompt": 6, "tokens": 6, "plain": 7, "drafts": 7, "ratio": 5, "drafted": 7, "accepted": 8}
"""Of the table: column and how wide it is."""
TEMPERATURES = {"edit": 0.0, "repeat": 0.0, "story": 1.0}


def answer(
    model: quantkit.Model, tokenizer: quantkit.Tokenizer, name: str, speculate: int
) -> tuple[list[int], float, quantkit.GenerationResponse]:
    """Return the tokens of an answer, how many came a second, and the last response."""
    responses = quantkit.stream_generate(
        model,
        tokenizer,
        [{"role": "user", "content": PROMPTS[name]}],
        max_tokens=MOST_TOKENS,
        sampler=quantkit.make_sampler(temp=TEMPERATURES[name], seed=1),
        speculate=speculate,
    )
    first = next(responses)
    begin = time.perf_counter()
    rest = list(responses)
    rate = len(rest) / (time.perf_counter() - begin)
    return [response.token for response in (first, *rest)], rate, rest[-1]


def main() -> None:
    """Take turns, print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packed", type=Path)
    parser.add_argument("--speculate", type=int, default=16, metavar="N", help="tokens of the longest draft")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()

    model, tokenizer = quantkit.load(options.packed, threads=options.threads)
    print(table_line(WIDTHS, [*WIDTHS.values()]))
    for name in PROMPTS:
        plain, drafts = [], []
        for _ in range(options.repetitions + 1):  # the first warms up
            expected, rate, _last = answer(model, tokenizer, name, 0)
            plain.append(rate)
            tokens, rate, last = answer(model, tokenizer, name, options.speculate)
            drafts.append(rate)
            if tokens != expected:
                sys.exit(f"{name}: drafts changed the answer")
        ratios = [with_drafts / without for with_drafts, without in zip(drafts[1:], plain[1:], strict=True)]
        speeds = (statistics.median(rates[1:]) for rates in (plain, drafts))
        cells = [name, f"{len(tokens)}", *(f"{speed:.1f}" for speed in speeds), f"{statistics.median(ratios):.2f}"]
        print(table_line([*cells, f"{last.draft_n}", f"{last.draft_n_accepted}"], [*WIDTHS.values()]), flush=True)
    model.close()


if __name__ == "__main__":
    main()
