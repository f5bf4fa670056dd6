"""Renders chat templates in a process of its own: a script that reads a JSON object a line and answers with one.

`template_process.py` starts it. A template is a program from the internet. jinja2's immutable sandbox keeps it from
Python's insides, but not from filling all memory or computing for ever; a process can be given limits for both. Nothing
of quantkit is imported here, so that the process starts quickly.

The first line says `path` (where Python finds modules) and the limits: `memory` (bytes, of the process), `seconds` (of
processor time for one text) and `characters` (of one text). Each further line: `source`, `variables` and `now` (what
time it is for the template; null: the clock's). An answer says either `text`, or `error` (a key of
`template_process.ERRORS`) and `message`.
"""

from __future__ import annotations

import json
import resource
import sys
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import jinja2

LONGEST_MESSAGE = 500
"""Characters of what a template says when it fails."""


def main() -> None:
    """Answer until standard input ends."""
    limits = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = limits["path"]
    _environment()
    _limit(resource.RLIMIT_AS, limits["memory"])
    _limit(resource.RLIMIT_CORE, 0)
    for line in sys.stdin.buffer:
        _limit_time(limits["seconds"])
        try:
            answer = _answer(line, limits["characters"])
        except MemoryError:
            answer = _failure("memory", "")
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


def _limit_time(seconds: int) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + seconds)


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]  # which the user may have lowered, and nobody may raise
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _answer(line: bytes, most_characters: int) -> dict[str, str]:
    from jinja2.exceptions import SecurityError, TemplateRuntimeError, TemplateSyntaxError

    try:
        request = json.loads(line)
        clock = {} if request["now"] is None else {"strftime_now": datetime.fromisoformat(request["now"]).strftime}
        text = _template(request["source"]).render(clock | request["variables"])
    except MemoryError:
        raise
    except TemplateSyntaxError as error:
        return _failure("syntax", f"line {error.lineno}: {error}")
    except SecurityError as error:
        return _failure("sandbox", error)
    except Exception as error:  # whatever foreign code may raise
        # jinja2 says so of filters and tests that it does not know; what a template raises is of other classes.
        return _failure("unknown" if type(error) is TemplateRuntimeError else "refused", error)
    return {"text": text} if len(text) <= most_characters else _failure("length", "")


def _failure(error: str, message: object) -> dict[str, str]:
    return {"error": error, "message": str(message)[:LONGEST_MESSAGE]}


@cache
def _template(source: str) -> jinja2.Template:
    return _environment().from_string(source)


@cache
def _environment() -> jinja2.Environment:
    """Build the environment in which transformers renders templates (its `utils/chat_template_utils.py`)."""
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

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now, "namespace": _namespace()}
    return environment


def _raise(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Write JSON as it is; jinja2's own filter escapes what means something in HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _namespace() -> type:
    from jinja2.exceptions import SecurityError
    from jinja2.utils import Namespace

    class PublicNamespace(Namespace):
        """A namespace without names that mean something to Python."""

        def __init__(*args: Any, **kwargs: Any) -> None:  # any name is free, `self` too
            names = dict(*args[1:], **kwargs)
            for name in names:
                check(name)
            Namespace.__init__(args[0], names)

        def __setitem__(self, name: str, value: Any) -> None:
            check(name)
            super().__setitem__(name, value)

    def check(name: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace has no attribute {name!r}: no name may begin with an underscore")

    return PublicNamespace


if __name__ == "__main__":
    main()
