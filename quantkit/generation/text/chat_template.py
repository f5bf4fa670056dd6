"""Chat templates: the jinja2 text in a checkpoint that turns a list of messages into a prompt.

A template is data from the internet. It runs in jinja2's immutable sandbox, in a process with limits of time and memory
(`template_process.py`), with exactly the helpers that templates written for transformers use. This module reads no
files and knows no tokens: `tokenizer.py` hands it what it found and encodes what comes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from quantkit.errors import CheckpointError, GenerationError
from quantkit.generation.text.template_process import ERRORS, TemplateProcess, fields_of, take_process

Message = Mapping[str, Any]
"""One turn of a conversation: `{"role": "user", "content": "..."}`, and what else a template may read."""

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""What templates and servers call the thoughts before an answer, the commonest name first."""

_PROBE = "Is this read?"
"""A text by which a template is tried."""


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template and the file that it came from.

    Attributes
    ----------
    held : Any
        What the file holds: the jinja2 text, a list of `{"name", "template"}`, or an object of names and texts. It is
        looked into when it is used, since a model can be used without its template.
    file : Path
        Where it was found; errors name it.
    special_tokens : Mapping
        Variables such as `bos_token` and `eos_token` that the template may write.
    """

    held: Any
    file: Path
    special_tokens: Mapping[str, Any]

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        now: datetime | None = None,
        **variables: Any,
    ) -> str:
        """Write the messages as a prompt, special tokens included (so encode it without adding any).

        Of several named templates, `tool_use` is taken where `tools` are given, else `default`, or the only one.

        Parameters
        ----------
        messages : sequence of dict
            The conversation, oldest first, of what JSON can hold: texts, numbers, lists and dicts. A field that is
            None is left out. Thoughts may be called `reasoning_content`, `thinking` or `reasoning`. A content that is
            a text becomes `[{"type": "text", "text": ...}]` where the template reads nothing else.
        add_generation_prompt : bool
            End with what opens the assistant's turn.
        now : datetime, optional
            The time of a template that tells the date; the clock's, if none is given.
        **variables
            Further variables of this template, for instance `enable_thinking=False` for Qwen3, or `tools=[...]`.

        Raises
        ------
        GenerationError
            When the template refuses these messages (unknown role, roles that do not alternate, ...), fails on them, or
            takes more time or memory than any honest one (`template_process.py` has the limits).
        UnsupportedError
            When the template is not valid jinja2 or tries to leave the sandbox.
        CheckpointError
            When the file holds no template, or several of which none is the default.
        """
        if not messages:
            raise GenerationError("the conversation is empty: give at least one message")
        source = self._source(tools=variables.get("tools") is not None)
        turns = [_turn(message) for message in messages]
        given = {**variables, "add_generation_prompt": add_generation_prompt}
        try:
            if any(isinstance(turn.get("content"), str) for turn in turns) and self._reads_parts_alone(source):
                turns = [_in_parts(turn) for turn in turns]
            answer = self._written(source, turns, given, now)
        except (TypeError, ValueError, RecursionError) as error:
            raise GenerationError(f"a chat template takes what JSON can hold, and this is not: {error}") from error
        except OSError as error:
            raise GenerationError(f"cannot start the process that renders chat templates: {error}") from error
        if "text" in answer:
            return answer["text"]
        kind, text = ERRORS[answer["error"]]
        raise kind(f"{self.file}: {text.format(message=answer['message'])}")

    def _source(self, *, tools: bool) -> str:
        if isinstance(self.held, str):
            return self.held
        if not isinstance(self.held, list | Mapping):
            raise CheckpointError(f"{self.file}: chat_template is neither a text nor several with names")
        try:
            pairs = (
                [(entry["name"], entry["template"]) for entry in self.held]
                if isinstance(self.held, list)
                else self.held.items()
            )
        except (TypeError, KeyError) as error:
            raise CheckpointError(f"{self.file}: an entry of chat_template lacks its name or its template") from error
        texts = {str(name): str(text) for name, text in pairs}
        for name in ("tool_use", "default") if tools else ("default",):
            if name in texts:
                return texts[name]
        if len(texts) != 1:
            names = ", ".join(texts) or "none"
            raise CheckpointError(f"{self.file}: no chat template is named 'default', only: {names}")
        return next(iter(texts.values()))

    def _written(
        self, source: str, turns: list[dict[str, Any]], variables: Mapping[str, Any], now: datetime | None = None
    ) -> dict[str, str]:
        given = {"tools": None, "documents": None, **self.special_tokens, **variables, "messages": turns}
        return self._process.render(source, given, now)

    def _reads_parts_alone(self, source: str) -> bool:
        """Whether a template passes over a content that is a text, as some of multimodal models do: tried once."""
        if "type" not in source:
            return False
        if source not in self._tried:
            plain: dict[str, Any] = {"role": "user", "content": _PROBE}
            answer, parts = (self._written(source, [turn], {}) for turn in (plain, _in_parts(plain)))
            passed_over = _PROBE not in answer.get("text", _PROBE) or answer.get("error") == "refused"
            self._tried[source] = passed_over and _PROBE in parts.get("text", "")
        return self._tried[source]

    @cached_property
    def _tried(self) -> dict[str, bool]:
        """What `_reads_parts_alone` has found of a template's text."""
        return {}

    @cached_property
    def _process(self) -> TemplateProcess:
        return take_process()


def _turn(message: Any) -> dict[str, Any]:
    """Return a message as templates expect it: without fields that are None, its thoughts under each of their names."""
    fields = fields_of(message)
    if fields is None:
        raise GenerationError(f"a message is {message!r:.60}, not a dict such as {{'role': 'user', 'content': 'Hi'}}")
    turn = {name: value for name, value in fields.items() if value is not None}
    thoughts = next((turn[name] for name in _REASONING if name in turn), None)
    return turn if thoughts is None else {"thinking": thoughts, **turn, "reasoning_content": thoughts}


def _in_parts(turn: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose content is a list of parts, as multimodal models have it."""
    content = turn.get("content")
    return {**turn, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else turn


def choose_template(candidates: Mapping[Path, Any], special_tokens: Mapping[str, Any]) -> ChatTemplate | None:
    """Return the first template there is, or None.

    Parameters
    ----------
    candidates : Mapping
        File -> what it holds, in order of precedence; None and an empty text are none.
    special_tokens : Mapping
        See `ChatTemplate`.
    """
    held = ((file, content) for file, content in candidates.items() if content is not None and content != "")
    return next((ChatTemplate(content, file, special_tokens) for file, content in held), None)
