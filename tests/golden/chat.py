"""Writes chat.json: what transformers makes of chat templates that use every feature such templates are known to use.

Run it as `python tests/golden/chat.py`, where transformers is installed; its version is written into the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

USER = {"role": "user", "content": "Grüße, <b>world</b> & 你好 "}
ASSISTANT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."}
SYSTEM = {"role": "system", "content": "  Be brief.  "}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"a": "ä", "b": [1, 2.5, None, True]}}}
ARGUMENTS = {"city": "Zürich, <CH>", "days": 7, "hourly": True, "unit": None, "tags": ["a", "b"]}


def call(arguments: Any, **fields: Any) -> dict[str, Any]:
    """Return a turn in which the assistant calls a tool."""
    function = {"name": "weather", "arguments": arguments}
    return {
        "role": "assistant",
        "tool_calls": [{"id": "abc123def", "type": "function", "function": function}],
        **fields,
    }


RESULT = {"role": "tool", "tool_call_id": "abc123def", "name": "weather", "content": '{"celsius": 21.5}'}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [USER],
    "three turns": [USER, ASSISTANT, USER],
    "with system": [SYSTEM, USER],
}
AGENTS: dict[str, list[dict[str, Any]]] = {
    "one turn": [USER],
    "system, two turns": [SYSTEM, USER, ASSISTANT, USER],
    "tool call": [SYSTEM, USER, call(ARGUMENTS, content=""), RESULT],
    "arguments as text": [USER, call(json.dumps(ARGUMENTS), content=""), RESULT, ASSISTANT, USER],
    "content of None": [USER, call(ARGUMENTS, content=None, refusal=None), RESULT],
    "two calls": [USER, {**call({}), "tool_calls": call(ARGUMENTS)["tool_calls"] * 2}, RESULT, RESULT],
    "thoughts": [USER, {"role": "assistant", "content": "Yes.", "reasoning_content": "hm\nso"}, USER],
    "thoughts by another name": [USER, {"role": "assistant", "content": "Yes.", "thinking": "hm"}, USER],
    "thoughts by a third name": [USER, {"role": "assistant", "content": "Yes.", "reasoning": "hm"}, USER],
    "parts": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}],
}
"""Conversations with tools, thoughts and content in parts, for the templates of `AGENT_TEMPLATES`."""

TEMPLATES: dict[str, str] = {
    "chatml": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama 3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim"
        " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
        "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    ),
    "whitespace control, namespace, break": """\
{%- set ns = namespace(found=false, last=-1) -%}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set ns.found = true %}
        {%- set ns.last = loop.index0 %}
        {%- break %}
    {%- endif %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
[{{ loop.index }}] {{ message.content }}
{% endfor %}
{% if ns.found %}
    stopped at {{ ns.last }}
{% endif %}
{# a comment #}
{{ bos_token }}{{ eos_token }}{{ missing_token }}|
""",
    "slices, filters, tests": """\
{% if messages[0]['role'] == 'system' %}
  {%- set system, rest = messages[0]['content'] | trim, messages[1:] -%}
{% else %}
  {%- set system, rest = '', messages -%}
{% endif %}
{% for message in rest %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{{ message['role'] | upper }}: {{ message.get('content', '') }}{{ '' if loop.last else ';' }}
{%- if message.content is string and '</think>' in message.content %}
 ({{ message.content.split('</think>')[-1].lstrip('\\n') }})
{%- endif %}
{% endfor %}
{{ rest[::-1][0].content | length }} {{ rest | map(attribute='role') | join(',') }}
""",
    "tojson, tools": """\
{%- if tools %}
{{- tools | tojson }}
{{- tools | tojson(indent=2) }}
{%- elif tools is none and documents is none %}no tools{% endif %}
{% for message in messages %}{{ message | tojson }}
{% endfor %}""",
    "generation": (
        "{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}"
        "{{ message.content }}{{ eos_token }}{% endgeneration %}{% else %}{{ message.content }}{% endif %}{% endfor %}"
    ),
    "macro": """\
{%- macro turn(role, text) -%}
<start_of_turn>{{ role }}
{{ text }}<end_of_turn>
{% endmacro -%}
{{ bos_token }}{% for message in messages %}{{ turn(message.role, message.content | trim) }}{% endfor %}
{%- if add_generation_prompt %}<start_of_turn>model
{% endif %}""",
}

AGENT_TEMPLATES: dict[str, str] = {
    "agent": """\
{%- set state = namespace(opened='', calls=0, self=none) %}
{%- if tools is defined and tools %}
    {{- '<tools>' }}
    {%- for tool in tools | sort(attribute='function.name') %}
        {{- '\n' ~ tool.function | tojson(separators=(',', ':'), sort_keys=true) }}
    {%- endfor %}
    {{- '</tools>\n' }}
{%- endif %}
{%- for document in documents or [] %}[{{ loop.index }}] {{ document.title }}: {{ document['text'] }}
{% endfor %}
{%- for message in messages %}
    {{- '<|' ~ message.role ~ '|>' }}
    {%- if message.content is string %}{{ message.content | trim }}
    {%- elif message.content is iterable and message.content is not mapping %}
        {%- for part in message.content | selectattr('type', 'equalto', 'text') %}{{ part.text }}{% endfor %}
        {{- message.content | rejectattr('type', 'eq', 'text') | map(attribute='type') | list | tojson }}
    {%- elif message.content is not defined %}{{ '(none)' }}
    {%- endif %}
    {%- if message.reasoning_content %}{{ '<think>' ~ message.reasoning_content ~ '</think>' }}{% endif %}
    {%- for call in message.tool_calls or [] %}
        {%- set state.calls = state.calls + 1 %}
        {%- set function = call.function if call.function is defined else call %}
        {{- '<call id=' ~ call.id[:3] ~ '>' ~ function.name }}
        {%- if function.arguments is mapping %}
            {%- for name, value in function.arguments.items() %}
                {{- ' ' ~ name ~ '=' ~ (value if value is string else value | tojson(ensure_ascii=True)) }}
            {%- endfor %}
            {{- function.arguments | dictsort | first | last | default('?', true) }}
        {%- else %}{{ function.arguments }}
        {%- endif %}
        {{- '</call>' }}
    {%- endfor %}
    {{- '\n' }}
{%- endfor %}
{%- set roles = messages | map(attribute='role') | unique | join('+') %}
{{- dict(calls=state.calls, roles=roles) | tojson(indent=1) | indent(2) }}
{%- if add_generation_prompt %}
    {{- '\n<|assistant|>' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n' }}{% endif %}
{%- endif %}
""",
    "agent with thoughts": (
        "{% for m in messages %}{{ m.role }}:{{ m.get('thinking') or '' }}|{{ m.reasoning_content | default('-') }}|"
        "{{ m.content if 'content' in m else 'nothing' }}|{{ m.keys() | list | join(',') }};{% endfor %}"
    ),
}

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def template(name: str) -> str:
    """Return the text of a template."""
    return {**TEMPLATES, **AGENT_TEMPLATES}[name]


def messages(case: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the conversation of a case."""
    return (CONVERSATIONS if case["template"] in TEMPLATES else AGENTS)[case["messages"]]


def cases() -> list[dict[str, Any]]:
    """Return every template with every conversation that is for it, without the answers."""
    document = {"title": "T", "text": "a < b"}
    return [
        {"template": name, "messages": conversation, "add_generation_prompt": prompt, "variables": variables}
        for name in TEMPLATES
        for conversation in CONVERSATIONS
        for prompt in (True, False)
        for variables in ([{}, {"tools": [TOOL]}] if "tools" in name else [{}])
    ] + [
        {"template": name, "messages": conversation, "add_generation_prompt": True, "variables": variables}
        for name in AGENT_TEMPLATES
        for conversation in AGENTS
        for variables in ({}, {"tools": [TOOL], "documents": [document], "enable_thinking": False})
    ]


def applied(text: str, conversation: list[dict[str, Any]], **variables: Any) -> str:
    """Return what transformers' `apply_chat_template` makes of a template's text and a conversation."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE({"a": 0}, [])), **SPECIAL_TOKENS)
    return str(tokenizer.apply_chat_template(conversation, chat_template=text, tokenize=False, **variables))


def rendered(case: dict[str, Any]) -> str:
    """Return what transformers makes of a case."""
    prompt = case["add_generation_prompt"]
    return applied(template(case["template"]), messages(case), add_generation_prompt=prompt, **case["variables"])


if __name__ == "__main__":
    import transformers

    answers = [case | {"text": rendered(case)} for case in cases()]
    content = {"transformers": transformers.__version__, "cases": answers}
    Path(__file__).with_suffix(".json").write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")
