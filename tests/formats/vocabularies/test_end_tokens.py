"""End tokens: found by their text, and the few cases where a text does not end an answer."""

from __future__ import annotations

import pytest

from quantkit.formats.vocabularies.end_tokens import END_TOKENS, END_TOKENS_IF_SPECIAL, end_tokens


def ends(*vocabulary: str, special: tuple[str, ...] = ()) -> set[str]:
    ids = {text: number for number, text in enumerate(vocabulary)}
    found = end_tokens(ids.get, lambda token: vocabulary[token] in special)
    assert all(ids[text] == token for text, token in found.items())
    return set(found)


@pytest.mark.parametrize("text", END_TOKENS)
def test_an_end_token_is_known_by_its_text(text: str) -> None:
    assert ends("a", text) == {text}


@pytest.mark.parametrize("text", END_TOKENS_IF_SPECIAL)
def test_html_ends_nothing_unless_it_is_marked(text: str) -> None:
    assert ends("a", text) == set()
    assert ends("a", text, special=(text,)) == {text}


def test_other_tokens_end_nothing() -> None:
    assert ends("<|im_start|>", "a", special=("<|im_start|>",)) == set()


@pytest.mark.parametrize("pair", [("<|return|>", "<|call|>"), ("<|calls|>", "<|flush|>")])
def test_the_end_of_one_of_several_messages_ends_no_answer(pair: tuple[str, str]) -> None:
    assert ends("<|end|>", *pair) == set(pair)
    assert ends("<|end|>", pair[0]) == {"<|end|>", pair[0]}
