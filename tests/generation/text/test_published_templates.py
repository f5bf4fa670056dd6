"""Chat templates as models are published with them: each renders as transformers renders it, or fails as it does there.

llama.cpp keeps such templates. `QUANTKIT_TEST_LLAMA_CPP` names a folder of its sources; the source distribution of
llama-cpp-python on PyPI has one.
"""

from __future__ import annotations

import json
import os
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
LEAST = 60
"""Templates that llama.cpp has, at least."""


@pytest.mark.live
def test_published_templates_render_as_in_transformers() -> None:
    files = sorted((Path(os.environ["QUANTKIT_TEST_LLAMA_CPP"]) / "models/templates").glob("*.jinja"))
    assert len(files) >= LEAST
    for file in files:
        template = ChatTemplate(file.read_text(), file, golden.SPECIAL_TOKENS)
        for name, (conversation, variables) in CONVERSATIONS.items():
            check(template, conversation, {"add_generation_prompt": True, **variables}, f"{file.name}: {name}")


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
