"""The process behind chat templates: nothing that a template does costs more than its limits, whoever waits for it."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import GenerationError
from quantkit.generation.text import template_process
from quantkit.generation.text.chat_template import ChatTemplate
from quantkit.generation.text.template_process import TemplateProcess

FILE = Path("model/chat_template.jinja")
USER = [{"role": "user", "content": "Hi"}]

ENDLESS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a chain of loops": "{% for a in range(99) %}" * 10 + "x" + "{% endfor %}" * 10,
    "a great power": "{{ (7 ** 7) ** (7 ** 8) % 10 }}",
    "shared lists": "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}"
    "{{ ns.a == ns.a | tojson | length }}",
}
LARGE = {
    "a repeated text": "{{ 'x' * 10**10 }}",
    "a repeated list": "{{ ([1] * 10**10) | length }}",
    "padding by %": "{{ '%1000000000d' % 1 }}",
    "padding by format": "{{ '{:1000000000}'.format(1) }}",
    "the filter format": "{{ '%1000000000s' | format('a') }}",
    "the method ljust": "{{ 'a'.ljust(10**10) }}",
    "the filter center": "{{ 'a' | center(10**10) }}",
    "the filter indent": "{{ 'a\\nb' | indent(10**10) }}",
    "the filter tojson": "{{ [1] | tojson(indent=10**10) }}",
    "replacement": "{{ ('a' * 10**5).replace('a', 'a' * 10**5) }}",
    "doubling by ~": "{% set ns = namespace(a='ab') %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
    "doubling by +": "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
    "a long number": "{{ 10 ** (10 ** 10) }}",
    "much output": "{% for i in range(99999) %}{{ 'x' * 10000 }}{% endfor %}",
}


@pytest.fixture(autouse=True)
def nothing_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test starts its own process, with its own limits."""
    monkeypatch.setattr(template_process, "_EARLY", [])


def render(source: str) -> str:
    return ChatTemplate(source, FILE, {}).render(USER)


@pytest.mark.parametrize("name", [*ENDLESS, *LARGE])
def test_limits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "CPU_SECONDS", 1)
    expected = r"takes more than \d+ (seconds|MB of memory)" if name in LARGE else r"takes more than \d+ seconds"
    with pytest.raises(GenerationError, match=rf"chat_template\.jinja: the chat template {expected}"):
        render((ENDLESS | LARGE)[name])


def test_a_range_without_end_is_refused() -> None:
    with pytest.raises(GenerationError, match=r"chat_template\.jinja: .*[Rr]ange too big"):
        render("{% for i in range(10**12) %}{% endfor %}")


def test_a_recursion_without_end_is_refused() -> None:
    with pytest.raises(GenerationError, match=r"chat_template\.jinja: .*recursion"):
        render("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}")


def test_a_long_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "CHARACTERS", 100)
    assert len(render("{{ 'x' * 100 }}")) == 100
    with pytest.raises(GenerationError, match=r"chat_template\.jinja: the chat template writes more than"):
        render("{{ 'x' * 101 }}")


def test_a_long_refusal_is_cut() -> None:
    with pytest.raises(GenerationError) as refusal:
        render("{{ raise_exception('no' * 10**6) }}")
    assert len(str(refusal.value)) < 1000


def test_texts_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "CPU_SECONDS", 1)
    loops = "{% for a in range(messages[0].loops) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"
    template = ChatTemplate(loops + "{{ 'x' * messages[0].size }}", FILE, {})
    for count, size in ((99999, 1), (1, 10**10)):
        with pytest.raises(GenerationError, match="takes more than"):
            template.render([{"loops": count, "size": size}])
        assert template.render([{"loops": 1, "size": 2}]) == "xx"


def test_the_limit_of_time_holds_for_each_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "CPU_SECONDS", 1)
    template = ChatTemplate("{% for a in range(300) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", FILE, {})
    template.render(USER)
    process = process_of(template)
    while cpu_seconds(process.pid) < 2.5:
        template.render(USER)
    assert process_of(template) is process


def cpu_seconds(process: int) -> float:
    user, system = Path(f"/proc/{process}/stat").read_text().rsplit(")")[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def test_lower_limits_of_the_user_are_kept() -> None:
    script = (
        "import resource\n"
        "from quantkit.generation.text.template_process import TemplateProcess\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (5, 5)), resource.setrlimit(resource.RLIMIT_AS, (400_000_000,) * 2)\n"
        "print(TemplateProcess().render('x', {}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "{'text': 'x'}\n", done.stderr


def test_many_threads_share_a_template() -> None:
    template = ChatTemplate("{{ messages[0].content }}", FILE, {})
    with ThreadPoolExecutor(8) as pool:
        texts = pool.map(lambda number: template.render([{"content": number}]), range(200))
        assert list(texts) == [str(number) for number in range(200)]


def process_of(template: ChatTemplate) -> subprocess.Popen[bytes]:
    process = template._process._process
    assert process is not None
    return process


def test_a_process_that_was_killed_is_started_again() -> None:
    template = ChatTemplate("x", FILE, {})
    assert template.render(USER) == "x"
    process_of(template).send_signal(signal.SIGKILL)
    process_of(template).wait()
    assert template.render(USER) == "x"


def test_a_process_that_ends_without_an_answer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(GenerationError, match=r"chat_template\.jinja: the process that renders .* ended \(status 1\)"):
        render("x")


def test_a_process_that_cannot_be_started_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(GenerationError, match="cannot start the process that renders chat templates"):
        render("x")


def test_a_process_that_was_started_early_renders_the_next_template() -> None:
    template_process.start_early()
    (early,) = template_process._EARLY
    template_process.start_early()
    first, second = (ChatTemplate("x", FILE, {}) for _ in range(2))
    assert first.render(USER) == second.render(USER) == "x"
    assert first._process is early
    assert process_of(first).pid != process_of(second).pid


def test_a_process_that_cannot_be_started_early_is_reported_late(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nowhere/python")
        template_process.start_early()
        with pytest.raises(GenerationError, match="cannot start the process"):
            render("x")


def test_an_interruption_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(process: Any, request: bytes) -> Any:
        raise KeyboardInterrupt

    template = ChatTemplate("x", FILE, {})
    assert template.render(USER) == "x"
    process = process_of(template)
    with monkeypatch.context() as patch:
        patch.setattr(template_process, "_ask", interrupted)
        with pytest.raises(KeyboardInterrupt):
            template.render(USER)
    assert process.returncode is not None
    assert template.render(USER) == "x"


def test_the_process_ends_with_its_template() -> None:
    template = ChatTemplate("x", FILE, {})
    template.render(USER)
    process = process_of(template)
    del template
    gc.collect()
    assert process.returncode is not None


def test_a_fork_has_a_process_of_its_own() -> None:
    process = TemplateProcess()
    assert process.render("x", {}) == {"text": "x"}
    child = os.fork()
    if child == 0:
        os._exit(0 if process.render("y", {}) == {"text": "y"} else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert process.render("z", {}) == {"text": "z"}
