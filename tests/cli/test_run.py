"""`quantkit run`: prompts from everywhere, sampling options, footer, and packing on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny

FEW = ("-n", 8)


def answer(invoke, packed: Path, *args: object, **kwargs: str) -> str:
    result = invoke("run", packed, *FEW, *args, **kwargs)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_the_answer_is_on_stdout_and_the_footer_on_stderr(invoke, packed: Path) -> None:
    result = invoke("run", packed, "-p", "hello there", *FEW)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.endswith("\n")
    footer = dict(line.split(":", 1) for line in result.stderr.strip().splitlines()[-5:])
    assert list(footer) == ["prompt", "generation", "weights", "KV cache", "peak memory"]
    assert " 8 tokens, " in footer["generation"]
    assert "GB/s" in footer["weights"]
    assert footer["KV cache"].endswith(" tokens, f16")


def test_a_prompt_comes_from_an_option_a_file_or_stdin(invoke, packed: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("hello there\n")
    expected = answer(invoke, packed, "-p", "hello there")
    assert answer(invoke, packed, "-f", file) == expected
    assert answer(invoke, packed, "-p", "-", input="hello there\n") == expected
    assert answer(invoke, packed, input="hello there") == expected


def test_the_chat_template_is_applied_unless_ignored(invoke, packed: Path) -> None:
    chat = invoke("run", packed, "-p", "hello", *FEW).stderr
    plain = invoke("run", packed, "-p", "hello", "--ignore-chat-template", *FEW).stderr
    with_system = invoke("run", packed, "-p", "hello", "-sys", "be brief", *FEW).stderr
    counts = [int(text.split("prompt:")[1].split()[0]) for text in (plain, chat, with_system)]
    assert counts == sorted(set(counts))


def test_the_model_without_a_template_continues_the_text(invoke, packed: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in packed.iterdir():
        if file.name != "chat_template.jinja":
            (bare / file.name).symlink_to(file)
    assert answer(invoke, bare, "-p", "hello") == answer(invoke, packed, "-p", "hello", "--ignore-chat-template")
    refused = invoke("run", bare, "-p", "hello", "-sys", "be brief")
    assert refused.exit_code == 2
    assert "--system-prompt" in refused.stderr


def test_the_prompt_is_displayed_on_demand(invoke, packed: Path) -> None:
    plain = answer(invoke, packed, "-p", "hello", "--ignore-chat-template")
    assert answer(invoke, packed, "-p", "hello", "--ignore-chat-template", "--display-prompt") == "hello" + plain
    assert answer(invoke, packed, "-p", "hello", "--ignore-chat-template", "--no-display-prompt") == plain


def test_a_seed_repeats_a_text_and_threads_do_not_change_it(invoke, packed: Path) -> None:
    texts = {
        answer(invoke, packed, "-p", "hello", "--temp", "2", "-s", "5", "-t", threads, "--ignore-eos")
        for threads in (1, 2)
    }
    assert len(texts) == 1
    others = {answer(invoke, packed, "-p", "hello", "--temp", "2", "-s", seed, "--ignore-eos") for seed in range(3)}
    assert len(others) > 1


def test_aliases_of_other_tools_are_understood(invoke, packed: Path) -> None:
    ours = answer(invoke, packed, "-p", "a", "--temp", 1, "--repeat-penalty", 1.3, "-s", 1)
    theirs = invoke(
        "run", packed, "--prompt", "a", "--temperature", 1, "--repetition-penalty", 1.3, "--seed", 1, "--predict", 8
    )
    assert theirs.stdout == ours


def test_speculation_changes_the_footer_alone(invoke, packed: Path) -> None:
    prompt = ("-p", "one two three one two three", "--ignore-eos")
    plain = answer(invoke, packed, *prompt)
    for spelling in ("--speculate", "--draft-max", "--num-draft-tokens"):
        result = invoke("run", packed, *prompt, *FEW, spelling, 4)
        assert result.stdout == plain
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("speculation:")]
        assert line.endswith("drafted tokens accepted")
    assert "speculation:" not in invoke("run", packed, *prompt, *FEW).stderr
    assert invoke("run", packed, *prompt, "--speculate", -1).exit_code == 2


def test_the_checkpoints_own_sampling_is_the_default(invoke, packed: Path, tmp_path: Path) -> None:
    sampled = tmp_path / "sampled"
    sampled.mkdir()
    for file in packed.iterdir():
        if file.name != "generation_config.json":
            (sampled / file.name).symlink_to(file)
    (sampled / "generation_config.json").write_text('{"do_sample": true, "temperature": 3.0, "eos_token_id": [1, 3]}')
    seeded = ("-p", "hello", "-s", 1, "--ignore-eos")
    explicit = answer(invoke, packed, *seeded, "--temp", 3, "--top-k", 50)
    assert answer(invoke, sampled, *seeded) == explicit
    assert answer(invoke, sampled, *seeded, "--temp", 0) == answer(invoke, packed, *seeded)


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
def test_requests_that_cannot_be_served(invoke, packed: Path, args: tuple[object, ...], status: int, word: str) -> None:
    result = invoke("run", packed, *args)
    assert (result.exit_code, result.stdout) == (status, "")
    assert result.stderr.startswith("error: ")
    assert word in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_prompt_that_is_not_text_is_refused(invoke, packed: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.bin"
    file.write_bytes(b"abc\xff")
    result = invoke("run", packed, "-f", file)
    assert result.exit_code == 2
    assert f"{file}: not UTF-8" in result.stderr


def test_a_checkpoint_is_packed_once_into_the_cache(invoke, packed: Path, model_cache: Path, tmp_path: Path) -> None:
    checkpoint = tiny.checkpoint(tmp_path / "tiny-llama")
    first = invoke("run", checkpoint, "-p", "hello", *FEW)
    assert first.exit_code == 0, first.stderr
    (folder,) = model_cache.iterdir()
    assert f"into {folder}" in first.stderr
    again = invoke("run", checkpoint, "-p", "hello", *FEW)
    assert "packing" not in again.stderr
    assert first.stdout == again.stdout == answer(invoke, packed, "-p", "hello")
