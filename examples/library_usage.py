"""quantkit as a library: load a packed model, complete a text, chat, choose a sampler, look at logits.

To run it:

    quantkit convert SmolLM2-135M-Instruct -o smollm2-packed
    python examples/library_usage.py smollm2-packed
"""

from __future__ import annotations

import sys

import numpy as np

import quantkit


def main(folder: str) -> None:
    model, tokenizer = quantkit.load(folder)

    # The text that follows a prompt; greedy unless a sampler says otherwise.
    print("complete:", quantkit.generate(model, tokenizer, "The capital of France is", max_tokens=12))

    # A conversation goes through the model's chat template. Text arrives token by token.
    messages = [{"role": "user", "content": "Name three colours of the rainbow."}]
    sampler = quantkit.make_sampler(temp=0.7, top_p=0.9, seed=1)
    penalties = quantkit.make_logits_processors(repetition_penalty=1.1)
    print("chat: ", end="")
    stream = quantkit.stream_generate(
        model, tokenizer, messages, max_tokens=64, sampler=sampler, logits_processors=penalties, stop=["\n\n"]
    )
    for response in stream:
        print(response.text, end="", flush=True)
    print(
        f"\n({response.generation_tokens} tokens, {response.generation_tps:.0f}/s, ended by {response.finish_reason})"
    )

    # A sampler is any function from logits to a token, a processor any function from (tokens, logits) to logits.
    def no_commas(tokens: list[int], logits: np.ndarray) -> np.ndarray:
        return np.where(np.arange(logits.size) == comma, -np.inf, logits)

    (comma,) = tokenizer.encode(",", add_special_tokens=False)
    text = quantkit.generate(model, tokenizer, "One, two,", max_tokens=12, logits_processors=[no_commas])
    print("no commas:", text)

    # Logits of every position, float32 [tokens, vocab_size].
    tokens = tokenizer.encode("The capital of France is")
    logits = model(tokens)
    likeliest = np.argsort(-logits[-1])[:3].tolist()
    print("likeliest next tokens:", [tokenizer.decode([token]) for token in likeliest])

    # Errors are quantkit's own and say what to do.
    try:
        quantkit.generate(model, tokenizer, "")
    except quantkit.QuantkitError as error:
        print("refused:", error)

    model.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
