"""Chat templates: the jinja2 text in a checkpoint that turns a list of messages into a prompt.

A template is data from the internet, so it runs in jinja2's immutable sandbox with exactly the helpers that templates
written for transformers use. This module reads no files and knows no tokens: `tokenizer.py` hands it the texts that it
found and encodes what comes out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from quantkit.errors import CheckpointError, GenerationError, UnsupportedError

if TYPE_CHECKING:
    import jinja2

Message = Mapping[str, Any]
"""One turn of a conversation: `{"role": "user", "content": "..."}`, and what else a template may read."""


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template and the file that it came from.

    Attributes
    ----------
    source : str
        The jinja2 text.
    file : Path
        Where it was found; errors name it.
    special_tokens : Mapping
        Variables such as `bos_token` and `eos_token` that the template may write.
    """

    source: str
    file: Path
    special_tokens: Mapping[str, str]

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any) -> str:
        """Write the messages as a prompt, special tokens included (so encode it without adding any).

        Parameters
        ----------
        messages : sequence of dict
            The conversation, oldest first.
        add_generation_prompt : bool
            End with what opens the assistant's turn.
        **variables
            Further variables of this template, for instance `enable_thinking=False` for Qwen3, or `tools=[...]`.

        Raises
        ------
        GenerationError
            When the template refuses these messages (unknown role, roles that do not alternate, ...) or fails on them.
        UnsupportedError
            When the template is not valid jinja2 or tries to leave the sandbox.
        """
        from jinja2.exceptions import SecurityError

        if not messages:
            raise GenerationError("the conversation is empty: give at least one message")
        given = {"tools": None, "documents": None, **self.special_tokens, **variables}
        template = self._template
        try:
            return template.render(messages=messages, add_generation_prompt=add_generation_prompt, **given)
        except SecurityError as error:
            raise UnsupportedError(f"{self.file}: the chat template leaves the sandbox: {error}") from error
        except Exception as error:  # whatever foreign code may raise
            raise GenerationError(f"{self.file}: the chat template refuses these messages: {error}") from error

    @cached_property
    def _template(self) -> jinja2.Template:
        from jinja2 import TemplateSyntaxError

        try:
            return _environment().from_string(self.source)
        except TemplateSyntaxError as error:
            raise UnsupportedError(f"{self.file}: the chat template, line {error.lineno}: {error}") from error


def choose_template(candidates: Mapping[Path, Any], special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    """Return the first template there is, or None.

    Parameters
    ----------
    candidates : Mapping
        File -> what it holds, in order of precedence: None, the text, or a list of `{"name", "template"}` of which the
        one named `default` (or the only one) counts.

    Raises
    ------
    CheckpointError
        When a file holds something else.
    """
    for file, held in candidates.items():
        if held is None or held == "":
            continue
        source = _default_template(held, file) if isinstance(held, list) else held
        if not isinstance(source, str):
            raise CheckpointError(f"{file}: chat_template is neither a text nor a list of named templates")
        return ChatTemplate(source, file, special_tokens)
    return None


def _default_template(named: list[Any], file: Path) -> str:
    try:
        texts = {str(entry["name"]): str(entry["template"]) for entry in named}
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{file}: an entry of chat_template lacks its name or its template") from error
    if "default" in texts:
        return texts["default"]
    if len(texts) != 1:
        raise CheckpointError(f"{file}: no chat template is named 'default', only: {', '.join(texts) or 'none'}")
    return next(iter(texts.values()))


def _environment() -> jinja2.Environment:
    """Build the environment in which transformers renders templates (its `utils/chat_template_utils.py`)."""
    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}...{% endgeneration %}` marks the assistant's words for training; here it is transparent."""

        tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **layout: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **layout)  # jinja2's own would escape HTML

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
    return environment
