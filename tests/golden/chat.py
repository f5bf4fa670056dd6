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

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [USER],
    "three turns": [USER, ASSISTANT, USER],
    "with system": [SYSTEM, USER],
}

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

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def cases() -> list[dict[str, Any]]:
    """Return every template with every conversation, without the answers."""
    return [
        {"template": name, "messages": messages, "add_generation_prompt": prompt, "variables": variables}
        for name in TEMPLATES
        for messages in CONVERSATIONS
        for prompt in (True, False)
        for variables in ([{}, {"tools": [TOOL]}] if "tools" in name else [{}])
    ]


def rendered(case: dict[str, Any]) -> str:
    """Return what transformers makes of a case."""
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, _ = render_jinja_template(
        conversations=[CONVERSATIONS[case["messages"]]],
        chat_template=TEMPLATES[case["template"]],
        add_generation_prompt=case["add_generation_prompt"],
        **SPECIAL_TOKENS,
        **case["variables"],
    )
    return str(texts[0])


if __name__ == "__main__":
    import transformers

    answers = [case | {"text": rendered(case)} for case in cases()]
    content = {"transformers": transformers.__version__, "cases": answers}
    Path(__file__).with_suffix(".json").write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")
