"""`quantkit run`: prompts from everywhere, sampling options, footer, and packing on the way."""

from __future__ import annotations

import json
import mmap
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import golden.generate as golden
import tiny
from invocation import Invoke
from quantkit.engine import numa
from quantkit.generation import loading
from quantkit.generation.loading import load_model

FEW = ("-n", 8)
GREEDY = ("--temp", 0)


def answer(invoke: Invoke, packed: Path, *args: object, **kwargs: str) -> str:
    result = invoke("run", packed, *FEW, *args, **kwargs)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def footer(invoke: Invoke, packed: Path, *args: object) -> dict[str, str]:
    """What stands behind an answer, by the names of its lines."""
    result = invoke("run", packed, *FEW, *args)
    assert result.exit_code == 0, result.stderr
    lines = (line.partition(":") for line in result.stderr.splitlines())
    return {name: text.strip() for name, _, text in lines}


def changed(packed: Path, folder: Path, files: dict[str, str]) -> Path:
    """The packed model with other contents in some files; an empty one is left out."""
    folder.mkdir()
    for file in packed.iterdir():
        if file.name not in files:
            (folder / file.name).symlink_to(file)
    for name, content in files.items():
        if content:
            (folder / name).write_text(content)
    return folder


def recommending(packed: Path, folder: Path, **fields: object) -> Path:
    """The packed model with another `generation_config.json`."""
    return changed(packed, folder, {"generation_config.json": json.dumps({"eos_token_id": [1, 3], **fields})})


def test_the_answer_is_on_stdout_and_the_footer_on_stderr(invoke: Invoke, packed: Path) -> None:
    result = invoke("run", packed, "-p", "hello there", *FEW)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.endswith("\n")
    found = footer(invoke, packed, "-p", "hello there")
    assert list(found) == ["sampling", "end", "prompt", "generation", "weights", "KV cache", "peak memory"]
    assert found["generation"].startswith("8 tokens, ")
    assert "GB/s" in found["weights"]
    assert found["KV cache"].endswith(" tokens, int16")


def test_what_recurrent_layers_keep_is_said(invoke: Invoke, tmp_path: Path) -> None:
    found = footer(invoke, golden.checkpoint(tmp_path, "lfm2"), "-p", "hello there")
    assert found["state"] == "1.02 KB, however many tokens"


def test_a_prompt_comes_from_an_option_a_file_or_stdin(invoke: Invoke, packed: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("hello there\n")
    expected = answer(invoke, packed, *GREEDY, "-p", "hello there")
    assert answer(invoke, packed, *GREEDY, "-f", file) == expected
    assert answer(invoke, packed, *GREEDY, "-p", "-", input="hello there\n") == expected
    assert answer(invoke, packed, *GREEDY, input="hello there") == expected


def test_the_chat_template_is_applied_unless_ignored(invoke: Invoke, packed: Path) -> None:
    chat = invoke("run", packed, "-p", "hello", *FEW).stderr
    plain = invoke("run", packed, "-p", "hello", "--ignore-chat-template", *FEW).stderr
    with_system = invoke("run", packed, "-p", "hello", "-sys", "be brief", *FEW).stderr
    counts = [int(text.split("prompt:")[1].split()[0]) for text in (plain, chat, with_system)]
    assert counts == sorted(set(counts))


def test_the_model_without_a_template_continues_the_text(invoke: Invoke, packed: Path, tmp_path: Path) -> None:
    bare = changed(packed, tmp_path / "bare", {"chat_template.jinja": ""})
    asked = (*GREEDY, "-p", "hello")
    assert answer(invoke, bare, *asked) == answer(invoke, packed, *asked, "--ignore-chat-template")
    for option, value in (("--system-prompt", "be brief"), ("--chat-template-kwargs", "{}")):
        refused = invoke("run", bare, "-p", "hello", option, value)
        assert refused.exit_code == 2
        assert f"{option} needs a chat template" in refused.stderr


def test_variables_reach_the_chat_template(invoke: Invoke, packed: Path, tmp_path: Path) -> None:
    template = "{% if thinking %}let me see: {% endif %}{{ messages[0].content }}"
    folder = changed(packed, tmp_path / "thinking", {"chat_template.jinja": template})
    with_thoughts = ("--chat-template-kwargs", '{"thinking": true}')
    without = ("--chat-template-kwargs", '{"thinking": false}')
    counts = [
        int(footer(invoke, folder, "-p", "hi", *args)["prompt"].split()[0]) for args in ((), without, with_thoughts)
    ]
    assert counts[0] == counts[1] < counts[2]


@pytest.mark.parametrize("variables", ["", "{", "[1]", "null", "[" * 100_000, '{"messages": []}', "1" * 5000])
def test_variables_that_are_none_are_refused(invoke: Invoke, packed: Path, variables: str) -> None:
    result = invoke("run", packed, "-p", "hi", "--chat-template-kwargs", variables)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert re.search("chat.template.kwargs", result.stderr)
    assert result.stderr.count("\n") == 1


def test_the_prompt_is_displayed_on_demand(invoke: Invoke, packed: Path) -> None:
    asked = (*GREEDY, "-p", "hello", "--ignore-chat-template")
    plain = answer(invoke, packed, *asked)
    assert answer(invoke, packed, *asked, "--display-prompt") == "hello" + plain
    assert answer(invoke, packed, *asked, "--no-display-prompt") == plain


def test_a_seed_repeats_a_text_and_threads_do_not_change_it(invoke: Invoke, packed: Path) -> None:
    texts = {
        answer(invoke, packed, "-p", "hello", "--temp", "2", "-s", "5", "-t", threads, "--ignore-eos")
        for threads in (1, 2)
    }
    assert len(texts) == 1
    others = {answer(invoke, packed, "-p", "hello", "--temp", "2", "-s", seed, "--ignore-eos") for seed in range(3)}
    assert len(others) > 1


def test_aliases_of_other_tools_are_understood(invoke: Invoke, packed: Path) -> None:
    ours = answer(invoke, packed, "-p", "a", "--temp", 1, "--repeat-penalty", 1.3, "-s", 1)
    theirs = invoke(
        "run", packed, "--prompt", "a", "--temperature", 1, "--repetition-penalty", 1.3, "--seed", 1, "--predict", 8
    )
    assert theirs.stdout == ours


def test_weights_on_all_memory_nodes_give_the_same_answer(
    invoke: Invoke, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[int] = []

    def move(pages: NDArray[np.int64], nodes: NDArray[np.int32]) -> NDArray[np.int32]:
        moved.extend(pages)
        return nodes

    expected = answer(invoke, packed, "-p", "a", *GREEDY)
    monkeypatch.setattr(loading, "memory_nodes", lambda: [0, 1])
    monkeypatch.setattr(numa, "_move", move)
    assert answer(invoke, packed, "-p", "a", *GREEDY, "--numa", "distribute") == expected
    assert len(moved) * mmap.PAGESIZE >= load_model(packed).nbytes


def test_speculation_changes_the_footer_alone(invoke: Invoke, packed: Path) -> None:
    prompt = ("-p", "one two three one two three", "--ignore-eos", *GREEDY)
    plain = answer(invoke, packed, *prompt)
    for spelling in ("--speculate", "--draft-max", "--num-draft-tokens"):
        result = invoke("run", packed, *prompt, *FEW, spelling, 4)
        assert result.stdout == plain
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("speculation:")]
        assert line.endswith("drafted tokens accepted")
    assert "speculation:" not in invoke("run", packed, *prompt, *FEW).stderr
    assert invoke("run", packed, *prompt, "--speculate", -1).exit_code == 2


def test_the_checkpoints_own_sampling_is_the_default(invoke: Invoke, packed: Path, tmp_path: Path) -> None:
    sampled = recommending(packed, tmp_path / "sampled", do_sample=True, temperature=3.0)
    seeded = ("-p", "hello", "-s", 1, "--ignore-eos")
    explicit = answer(invoke, packed, *seeded, "--temp", 3, "--top-k", 50)
    assert answer(invoke, sampled, *seeded) == explicit
    assert answer(invoke, sampled, *seeded, "--temp", 0) == answer(invoke, packed, *seeded, "--temp", 0)


LLAMA_CPP = "--temp 0.8 --top-k 40 --top-p 0.95 --min-p 0.05"


@pytest.mark.parametrize(
    ("recommended", "asked", "expected"),
    [
        ({}, (), f"{LLAMA_CPP} --seed 0"),
        ({"repetition_penalty": 1.0}, (), f"{LLAMA_CPP} --seed 0"),
        ({}, ("--top-k", 0, "--seed", 7), "--temp 0.8 --top-k 0 --top-p 0.95 --min-p 0.05 --seed 7"),
        ({}, GREEDY, "--temp 0"),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
            ("--top-p", 0.5),
            "--temp 0.6 --top-k 50 --top-p 0.5 --min-p 0.05 --seed 0",
        ),
        ({"repetition_penalty": 1.3}, (), f"{LLAMA_CPP} --repeat-penalty 1.3 --seed 0"),
        ({"repetition_penalty": 1.3}, GREEDY, "--temp 0 --repeat-penalty 1.3"),
        ({"repetition_penalty": 1.3}, (*GREEDY, "--repeat-penalty", 1), "--temp 0"),
    ],
)
def test_what_was_asked_then_what_is_recommended_then_llama_cpps(
    invoke: Invoke,
    packed: Path,
    tmp_path: Path,
    recommended: dict[str, object],
    asked: tuple[object, ...],
    expected: str,
) -> None:
    folder = recommending(packed, tmp_path / "model", **recommended)
    assert footer(invoke, folder, "-p", "hello", *asked)["sampling"] == expected


def test_the_footer_says_how_to_repeat_an_answer(invoke: Invoke, packed: Path) -> None:
    asked = ("run", packed, "-p", "hello", "-n", 24, "--ignore-eos")
    assert invoke(*asked).stdout == invoke(*asked).stdout
    first, second = (invoke(*asked, "--seed", -1) for _ in range(2))
    options = [re.findall("sampling: +(.*)", result.stderr)[0].split() for result in (first, second)]
    assert options[0] != options[1]
    assert first.stdout != second.stdout
    assert invoke(*asked, *options[0]).stdout == first.stdout


def test_penalties_look_back_as_far_as_asked(invoke: Invoke, packed: Path, tmp_path: Path) -> None:
    seeded = ("-p", "hello", "--ignore-eos", *GREEDY, "-n", 80)
    whole, near, none = (
        answer(invoke, packed, *seeded, "--repeat-penalty", 1.8, *window)
        for window in ((), ("--repeat-last-n", 4), ("--repetition-context-size", 0))
    )
    assert len({whole, near, none}) == 3
    assert none == answer(invoke, packed, *seeded)
    recommended = recommending(packed, tmp_path / "model", repetition_penalty=1.8)
    assert answer(invoke, recommended, *seeded) == whole
    assert invoke("run", packed, "-p", "a", "--repeat-last-n", -2).exit_code == 2


@pytest.mark.parametrize(("known", "end"), [(1e15, "of the 1000000.0 GB/s that `bench` measured)"), (1.0, " GB/s")])
def test_the_share_of_the_bandwidth_is_none_of_a_busy_machines(
    invoke: Invoke, packed: Path, monkeypatch: pytest.MonkeyPatch, known: float, end: str
) -> None:
    monkeypatch.setattr("quantkit.evaluation.benchmark.known_bandwidth", lambda threads: known)
    assert footer(invoke, packed, "-p", "hello", "--ignore-eos")["weights"].endswith(end)


def test_the_footer_says_why_an_answer_ended(invoke: Invoke, packed: Path, tmp_path: Path) -> None:
    def end(folder: Path, *args: object) -> str:
        return footer(invoke, folder, *GREEDY, "-p", "hello", *args)["end"]

    assert end(packed, "--ignore-eos") == "length, --max-tokens 8"
    assert end(packed, "--ignore-eos", "-n", -1) == "length, the context is full"
    text = answer(invoke, packed, *GREEDY, "-p", "hello", "--ignore-eos", "--ignore-chat-template")
    assert end(packed, "--ignore-eos", "--ignore-chat-template", "--stop", text[2]) == "stop, --stop"
    everything = recommending(packed, tmp_path / "model", eos_token_id=list(range(320)))
    assert end(everything) == "stop, end of text"


@pytest.mark.parametrize(
    ("args", "status", "word"),
    [
        (("-p", ""), 1, "empty"),
        (("-p", "a " * 500), 1, "context"),
        (("-p", "a", "-c", 0), 2, "context"),
        (("-p", "a", "-c", 100000), 2, "context"),
        (("-p", "a", "-n", 0), 2, "max_tokens"),
        (("-p", "a", "--temp", -1), 2, "temp"),
        (("-p", "a", "--top-p", 2), 2, "top_p"),
        (("-p", "a", "--stop", ""), 2, "stop"),
    ],
)
def test_requests_that_cannot_be_served(
    invoke: Invoke, packed: Path, args: tuple[object, ...], status: int, word: str
) -> None:
    result = invoke("run", packed, *args)
    assert (result.exit_code, result.stdout) == (status, "")
    assert result.stderr.startswith("error: ")
    assert word in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_prompt_that_is_not_text_is_refused(invoke: Invoke, packed: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.bin"
    file.write_bytes(b"abc\xff")
    result = invoke("run", packed, "-f", file)
    assert result.exit_code == 2
    assert f"{file}: not UTF-8" in result.stderr


def test_a_checkpoint_is_packed_once_into_the_cache(
    invoke: Invoke, packed: Path, model_cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tiny.checkpoint(tmp_path / "tiny-llama")
    first = invoke("run", checkpoint, "-p", "hello", *FEW, *GREEDY)
    assert first.exit_code == 0, first.stderr
    (folder,) = model_cache.iterdir()
    assert f"packing {checkpoint}, once, into {folder}" in caplog.text
    caplog.clear()
    again = invoke("run", checkpoint, "-p", "hello", *FEW, *GREEDY)
    assert "packing" not in caplog.text
    assert first.stdout == again.stdout == answer(invoke, packed, *GREEDY, "-p", "hello")
