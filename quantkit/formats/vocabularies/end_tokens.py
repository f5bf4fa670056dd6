"""The tokens that end a turn or a text, known by how they are written.

Checkpoints forget to declare them: fine-tunes of base models, tokenizers that do not mark them as special, GGUF files
that call them normal. llama.cpp knows them by their text; so does quantkit, with the same list. The ids that a
checkpoint declares are read elsewhere, by `gguf/tokenizer.py` and in the generation room.
"""

from __future__ import annotations

from collections.abc import Callable

END_TOKENS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<|endofturn|>",
    "<turn|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<|tool_response>",
    "<end_of_utterance>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
"""Always end an answer, and always are one token in a prompt, however a vocabulary marks them."""

END_TOKENS_IF_SPECIAL = ("</s>", "<eos>")
"""End an answer where the vocabulary marks them as special; elsewhere they are HTML (Gemma has a token for `</s>`)."""

_END_OF_MESSAGE = "<|end|>"
_SEVERAL_MESSAGES = (("<|return|>", "<|call|>"), ("<|calls|>", "<|flush|>"), ("<|call|>", "<|flush|>"))
"""Where both of a pair are tokens, an answer has several messages, and `<|end|>` ends each but the last: gpt-oss."""


def end_tokens(id_of: Callable[[str], int | None], is_special: Callable[[int], bool]) -> dict[str, int]:
    """Return the tokens of a vocabulary that end an answer by their text: text -> id.

    Parameters
    ----------
    id_of : callable
        The id of a token's text, or None.
    is_special : callable
        Whether the vocabulary marks an id as special (a control token).
    """
    known = {text: token for text in END_TOKENS if (token := id_of(text)) is not None}
    if any(first in known and second in known for first, second in _SEVERAL_MESSAGES):
        known.pop(_END_OF_MESSAGE, None)
    marked = {text: token for text in END_TOKENS_IF_SPECIAL if (token := id_of(text)) is not None and is_special(token)}
    return known | marked
