"""Chat templates: equal to what transformers renders (golden); refusals name the file; nothing leaves the sandbox."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from golden import chat as golden
from quantkit.errors import CheckpointError, GenerationError, UnsupportedError
from quantkit.generation.text.chat_template import ChatTemplate, choose_template

FILE = Path("model/chat_template.jinja")
USER = [{"role": "user", "content": "Hi"}]
GOLDEN = json.loads(Path(golden.__file__).with_suffix(".json").read_text())["cases"]


def render(source: str, messages: list[dict[str, Any]] = USER, **variables: Any) -> str:
    return ChatTemplate(source, FILE, {"bos_token": "<s>"}).render(messages, **variables)


def case_name(case: dict[str, Any]) -> str:
    told = ", ".join(case["variables"]) or "no variables"
    return "; ".join([case["template"], case["messages"], str(case["add_generation_prompt"]), told])


@pytest.mark.parametrize("case", GOLDEN, ids=case_name)
def test_equals_transformers(case: dict[str, Any]) -> None:
    template = ChatTemplate(golden.template(case["template"]), FILE, golden.SPECIAL_TOKENS)
    text = template.render(
        golden.messages(case), add_generation_prompt=case["add_generation_prompt"], **case["variables"]
    )
    assert text == case["text"]


def test_every_case_has_an_answer() -> None:
    assert [{name: case[name] for name in case if name != "text"} for case in GOLDEN] == golden.cases()


@pytest.mark.live
def test_answers_are_those_of_the_installed_transformers() -> None:
    for case in GOLDEN:
        assert golden.rendered(case) == case["text"], case_name(case)


def test_strftime_now_is_the_local_date() -> None:
    before = datetime.now()
    text = render("{{ strftime_now('%Y-%m-%d') }}")
    assert before.strftime("%Y-%m-%d") <= text <= datetime.now().strftime("%Y-%m-%d")


def test_strftime_now_is_the_time_that_is_given() -> None:
    assert render("{{ strftime_now('%d %b %Y') }}", now=datetime(2024, 7, 26)) == "26 Jul 2024"


def test_variables_reach_the_template_and_override_special_tokens() -> None:
    assert render("{{ enable_thinking }} {{ bos_token }}", enable_thinking=False, bos_token="<b>") == "False <b>"


def test_refusal_of_the_template_is_reported_with_its_words() -> None:
    with pytest.raises(GenerationError, match=r"chat_template\.jinja.*System role not supported"):
        render("{{ raise_exception('System role not supported') }}")


def test_failing_template_is_reported() -> None:
    with pytest.raises(GenerationError, match=r"chat_template\.jinja"):
        render("{{ messages[0]['content'] + 1 }}")


def test_invalid_template_names_file_and_line() -> None:
    with pytest.raises(UnsupportedError, match=r"chat_template\.jinja.*line 2"):
        render("ok\n{% for %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__['__builtins__'] }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
        "{% set _ = messages.append({'role': 'user', 'content': 'x'}) %}",
        "{{ messages[0].update(role='system') }}",
    ],
)
def test_sandbox_holds(source: str) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises((UnsupportedError, GenerationError), match=r"chat_template\.jinja"):
        render(source, messages)
    assert messages == USER


def test_no_files_can_be_included() -> None:
    with pytest.raises(GenerationError, match=r"chat_template\.jinja"):
        render("{% include '/etc/passwd' %}")


def test_empty_conversation_is_refused() -> None:
    with pytest.raises(GenerationError, match="empty"):
        render("x", [])


def test_first_file_with_a_template_counts() -> None:
    chosen = choose_template({Path("a"): None, Path("b"): "", Path("c"): "C", Path("d"): "D"}, {})
    assert chosen is not None
    assert (chosen.held, chosen.file) == ("C", Path("c"))
    assert choose_template({Path("a"): None}, {}) is None


PARTS = (
    "{% for m in messages %}{{ m.role }}:{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}"
    "{% endfor %};{% endfor %}"
)
"""As SmolVLM, LLaVA and others have it: of a content that is a text, nothing would be left."""
EITHER = "{% for m in messages %}{{ m.content if m.content is string else m.content[0]['type'] }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "expected"), [(PARTS, "system:a;user:b;"), (EITHER, "ab"), ("{{ messages[0].type }}", "")]
)
def test_a_text_reaches_templates_that_read_parts(template: str, expected: str) -> None:
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    assert ChatTemplate(template, FILE, {}).render(messages) == expected


def test_parts_stay_what_they_are() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert ChatTemplate(PARTS, FILE, {}).render([{"role": "user", "content": parts}, USER[0]]).startswith("user:ab;")


NAMED = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]


@pytest.mark.parametrize(
    ("held", "variables", "expected"),
    [
        (NAMED, {}, "D"),
        (NAMED, {"tools": [{}]}, "T"),
        (NAMED, {"tools": None}, "D"),
        (NAMED[:1], {}, "T"),
        (NAMED[1:], {"tools": []}, "D"),
        ({"tool_use": "T", "default": "D"}, {}, "D"),
        ({"a": "A"}, {}, "A"),
    ],
)
def test_choice_among_named_templates(held: Any, variables: dict[str, Any], expected: str) -> None:
    assert ChatTemplate(held, FILE, {}).render(USER, **variables) == expected


@pytest.mark.parametrize(
    "held", [7, {"a": "x", "b": "x"}, {}, [], [{"name": "a"}], ["x"], [{"name": n, "template": "x"} for n in "ab"]]
)
def test_malformed_templates_are_refused_when_they_are_used(held: object) -> None:
    chosen = choose_template({FILE: held}, {})
    assert chosen is not None
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja"):
        chosen.render(USER)


@pytest.mark.parametrize("value", [object(), {1, 2}, b"a", {(1, 2): 3}])
def test_variables_that_json_cannot_hold_are_refused(value: object) -> None:
    with pytest.raises(GenerationError, match="a chat template takes what JSON can hold"):
        render("x", other=value)


@dataclass
class Turn:
    """A message as other libraries write them."""

    role: str
    content: str | None
    refusal: None = None


class Model:
    """What a pydantic model answers to."""

    def model_dump(self) -> dict[str, Any]:
        return {"role": "user", "content": "b"}


def test_objects_with_fields_are_taken_for_dicts() -> None:
    text = ChatTemplate("{{ messages | tojson }}", FILE, {}).render([Turn("user", "a"), Model()])  # type: ignore[list-item]
    assert json.loads(text) == [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]


@pytest.mark.parametrize("message", ["Hi", 7, None, Turn, ["user", "Hi"]])
def test_a_message_without_fields_is_refused(message: Any) -> None:
    with pytest.raises(GenerationError, match="not a dict such as"):
        render("x", [message])


@pytest.mark.parametrize(
    "source", ["{{ messages | from_json }}", "{% if messages %}{{ messages | from_json }}{% endif %}"]
)
def test_a_construct_that_templates_do_not_have_is_named(source: str) -> None:
    with pytest.raises(UnsupportedError, match=r"chat_template\.jinja: the chat template.*filter named 'from_json'"):
        render(source)


@pytest.mark.parametrize(
    "source", ["{% set n = namespace(_a=1) %}", "{% set n = namespace() %}{% set n.__class__ = 1 %}"]
)
def test_a_namespace_has_public_names_alone(source: str) -> None:
    with pytest.raises(UnsupportedError, match="leaves the sandbox: a namespace has no attribute '_"):
        render(source)


def test_mappings_and_tuples_are_taken_for_dicts_and_lists() -> None:
    messages = (MappingProxyType({"role": "user", "content": ("a", "b")}),)
    assert ChatTemplate("{{ messages[0].content[1] }}", FILE, {}).render(messages) == "b"


def test_half_a_surrogate_pair_passes() -> None:
    assert render("{{ messages[0].content }}", [{"role": "user", "content": "a\ud83db"}]) == "a\ud83db"
