"""Chat templates as models are published with them: each renders as transformers renders it, or fails as it does there.

llama.cpp keeps such templates. `QUANTKIT_TEST_LLAMA_CPP` names a folder of its sources; the source distribution of
llama-cpp-python on PyPI has one. So does axolotl, which is installed without what it depends on.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from golden import chat as golden
from golden.chat import ARGUMENTS, ASSISTANT, RESULT, SYSTEM, USER, call
from quantkit.errors import QuantkitError
from quantkit.generation.text.chat_template import ChatTemplate

PROPERTIES = {
    "city": {"type": "string", "description": "City & country"},
    "days": {"type": "integer", "description": "How many", "enum": [1, 7]},
    "tags": {"type": "array", "items": {"type": "string"}, "description": "<any>"},
}
PARAMETERS = {"type": "object", "properties": PROPERTIES, "required": ["city"]}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather of a city.",
        "parameters": PARAMETERS,
        "return": {"type": "string", "description": "The weather"},
    },
}
TOOLS = {"tools": [WEATHER]}

Conversation = tuple[list[dict[str, Any]], dict[str, Any]]

CONVERSATIONS: dict[str, Conversation] = {name: (turns, TOOLS) for name, turns in golden.AGENTS.items()} | {
    "no tools": ([USER], {}),
    "system, no tools": ([SYSTEM, USER, ASSISTANT, USER], {}),
    "answered": ([USER, ASSISTANT], {"add_generation_prompt": False}),
    "arguments as text, answered": ([SYSTEM, USER, call(json.dumps(ARGUMENTS), content=""), RESULT, ASSISTANT], TOOLS),
    "thinking on": ([USER], {"enable_thinking": True, "thinking": True}),
    "thinking off": ([SYSTEM, USER], {"enable_thinking": False, "thinking": False}),
    "effort": ([USER], {"reasoning_effort": "high"}),
    "thoughts, no tools": (golden.AGENTS["thoughts"], {}),
    "documents": ([USER], {"documents": [{"title": "T", "text": "a < b"}]}),
}
LEAST = 140
"""Templates, at least: files of both, and texts in one of llama.cpp's tests."""

IN_A_TEST = re.compile(r'/\* \.template_str=? \*/ (?:U8C\()?(?:u8)?("(?:[^"\\]|\\.)*")')


def templates() -> Iterator[tuple[str, str]]:
    """Yield name and text of each template."""
    folder = Path(os.environ["QUANTKIT_TEST_LLAMA_CPP"])
    for file in sorted((folder / "models/templates").glob("*.jinja")):
        yield file.name, file.read_text()
    spec = importlib.util.find_spec("axolotl")
    assert spec is not None
    assert spec.submodule_search_locations
    for file in sorted(Path(spec.submodule_search_locations[0]).glob("utils/chat_templates/templates/*.jinja")):
        yield f"axolotl's {file.name}", file.read_text()
    test = folder / "tests/test-chat-template.cpp"
    for number, literal in enumerate(IN_A_TEST.findall(test.read_text())):
        yield f"{test.name}, text {number}", json.loads(literal)


@pytest.mark.live
def test_published_templates_render_as_in_transformers() -> None:
    found = dict(templates())
    assert len(found) >= LEAST
    for name, text in found.items():
        template = ChatTemplate(text, Path(name), golden.SPECIAL_TOKENS)
        for case, (conversation, variables) in CONVERSATIONS.items():
            check(template, conversation, {"add_generation_prompt": True, **variables}, f"{name}: {case}")


def check(template: ChatTemplate, conversation: list[dict[str, Any]], variables: dict[str, Any], where: str) -> None:
    expected, refusal = "", None
    try:
        expected = golden.applied(template.held, conversation, **variables)
    except Exception as error:  # transformers lets jinja2's errors, and those of Python below it, through
        refusal = str(error)[:100]
    if refusal is None:
        assert template.render(conversation, **variables) == expected, where
        return
    with pytest.raises(QuantkitError) as caught:
        template.render(conversation, **variables)
    assert refusal in str(caught.value), where
