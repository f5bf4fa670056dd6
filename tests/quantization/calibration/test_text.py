"""The text that a model is calibrated on: windows of one length, spread over it; the built-in one."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import tiny
from golden import generate as golden
from quantkit import formats
from quantkit.engine.binding import bind
from quantkit.errors import CheckpointError, OptionError
from quantkit.formats.source import ModelSource
from quantkit.generation.loading import load_tokenizer
from quantkit.models.program import Program
from quantkit.quantization.calibration import BUILTIN
from quantkit.quantization.calibration import text as module
from quantkit.quantization.calibration.text import check_calibration_file, read_calibration_text

DOCUMENTS = [json.loads(line) for line in Path(module.__file__).with_name("builtin.jsonl").open(encoding="utf-8")]
PARTS = 8


def program_of(source: ModelSource) -> Program:
    return bind(source).program


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    return formats.open(tiny.checkpoint(tmp_path / "model"))


def test_windows_are_alike_and_reach_from_end_to_end(source: ModelSource, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(" ".join(map(str, range(30000))))
    found = read_calibration_text(file, source, program_of(source))
    tokenizer = load_tokenizer(source.path)
    begin, ids = tokenizer.encode(""), tokenizer.encode(file.read_text(), add_special_tokens=False)
    assert {len(window) for window in found.windows} == {module.WINDOW_TOKENS}
    assert len(found.windows) == module.MOST_WINDOWS
    assert all(window[: len(begin)] == begin for window in found.windows)
    assert found.windows[0][len(begin) :] == ids[: module.WINDOW_TOKENS - len(begin)]
    assert found.windows[-1][len(begin) :] == ids[len(begin) - module.WINDOW_TOKENS :]
    assert found.tokens == module.MOST_WINDOWS * module.WINDOW_TOKENS
    assert found.about["text"] == "text.txt"


def test_line_ends_and_byte_order_marks_are_no_text(source: ModelSource, tmp_path: Path) -> None:
    lines = [f"this is line {number}" for number in range(300)]
    contents = {"unix": "\n".join(lines), "windows": "\ufeff" + "\r\n".join(lines), "mac": "\r".join(lines)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content.encode())
    unix, *others = (read_calibration_text(tmp_path / name, source, program_of(source)).windows for name in contents)
    assert all(other == unix for other in others)


def test_lines_of_json_are_texts_and_dialogues(source: ModelSource, tmp_path: Path) -> None:
    said = [{"role": "user", "content": "how many?"}, {"role": "assistant", "content": "seven of them"}]
    asked, answered = (message["content"] for message in said)
    documents = [
        {"text": "the first of all\n", "meta": 1}, {"messages": said}, {"prompt": asked, "completion": answered}
    ] * 60  # fmt: skip
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, documents)) + "\n\n")
    tokenizer = load_tokenizer(source.path)
    window = read_calibration_text(tmp_path / "data.jsonl", source, program_of(source)).windows[0]
    text = tokenizer.decode(window[1:], skip_special_tokens=False)
    dialogue = tokenizer.apply_chat_template(said, add_generation_prompt=False)
    assert text.startswith("the first of all\n\n\n" + dialogue + dialogue)


@pytest.mark.parametrize(
    "line", ["{", "[1]", '{"prompt": "a"}', '{"messages": []}', '{"messages": [{"role": "user"}]}']
)
def test_a_line_that_says_nothing_is_named(source: ModelSource, tmp_path: Path, line: str) -> None:
    (tmp_path / "data.jsonl").write_text(json.dumps({"text": "a"}) + "\n" + line)
    with pytest.raises(OptionError, match=r"data\.jsonl: line 2: (is not JSON|has neither a text, nor messages)"):
        check_calibration_file(tmp_path / "data.jsonl")


def test_of_a_large_text_passages_are_read(
    source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 1 << 16)
    monkeypatch.setattr(module, "PASSAGE_BYTES", 1 << 12)
    numbers, tokenizer = range(100_000, 200_000), load_tokenizer(source.path)
    (tmp_path / "lines.txt").write_text("\n".join(f"<{number}>" for number in numbers))
    (tmp_path / "one.txt").write_text("é" * 100_000)
    windows = read_calibration_text(tmp_path / "lines.txt", source, program_of(source)).windows
    for window, wanted in zip((windows[0], windows[-1]), ("<1000", "<199"), strict=True):
        text = tokenizer.decode(window)
        assert re.search(r"<\d{6}>\n<\d{6}>", text)
        assert wanted in text
        assert set(re.findall(r"<\d+>", text)) <= {f"<{number}>" for number in numbers}
    window = read_calibration_text(tmp_path / "one.txt", source, program_of(source)).windows[0]
    assert set(tokenizer.decode(window[1:])[:-1]) == {"é"}  # the last one may be cut


def test_a_pipe_cannot_be_read_twice(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(OptionError, match="is not a regular file"):
            check_calibration_file(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"GGUF\x03\0\0\0" + bytes(200_000), "x: is a GGUF file, no text; an importance file goes with --imatrix"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "x: is a Git LFS pointer, not the"),
    ],
)
def test_what_is_no_text_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    for name in ("x", "x.jsonl"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OptionError, match=words.replace("x: ", f"{name}: ")):
            check_calibration_file(tmp_path / name)


def test_windows_are_no_longer_than_the_positions_that_a_model_has_learned(tmp_path: Path) -> None:
    source = formats.open(golden.checkpoint(tmp_path / "gpt2", "gpt2"))
    (tmp_path / "text.txt").write_text("a b c " * 1000)
    found = read_calibration_text(tmp_path / "text.txt", source, program_of(source))
    assert {len(window) for window in found.windows} == {program_of(source).learned_positions}


def test_tokens_that_the_model_lacks_are_named(tmp_path: Path) -> None:
    source = formats.open(tiny.checkpoint(tmp_path / "small", vocab_size=300))
    (tmp_path / "text.txt").write_text("the one and all of them " * 1000)
    with pytest.raises(CheckpointError, match=r"small: its tokenizer reads the text as token 3\d\d, .* has 300"):
        read_calibration_text(tmp_path / "text.txt", source, program_of(source))


def test_the_spelling_of_a_special_token_is_text(source: ModelSource, tmp_path: Path) -> None:
    special = load_tokenizer(source.path)
    (tmp_path / "text.txt").write_text("</s> " * 1000)
    begin = special.encode("")
    windows = read_calibration_text(tmp_path / "text.txt", source, program_of(source)).windows
    assert all(special.eos_token_ids.isdisjoint(window[len(begin) :]) for window in windows)


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("name", [BUILTIN, Path(BUILTIN)])
def test_the_builtin_text_is_for_every_model(source: ModelSource, name: str | Path, template: bool) -> None:
    if not template:
        (source.path / "chat_template.jinja").unlink()
        source = formats.open(source.path)
    found = read_calibration_text(name, source, program_of(source))
    assert found.name == BUILTIN
    assert len(found.windows) == module.MOST_WINDOWS


def test_dialogues_are_written_by_the_models_template(source: ModelSource) -> None:
    template = source.path / "chat_template.jinja"
    template.write_text(
        "{% for it in messages %}[{{ it.role }}, {{ strftime_now('%Y-%m-%d') }}]{{ it.content }}{% endfor %}"
    )
    found = read_calibration_text(BUILTIN, formats.open(source.path), program_of(source))
    text = "".join(map(load_tokenizer(source.path).decode, found.windows))
    assert f"[assistant, {module.DATE:%Y-%m-%d}]" in text  # whatever day it is
    assert "[system, " in text


def test_the_builtin_text_has_some_of_everything() -> None:
    assert len(DOCUMENTS) == len({_text_of(each) for each in DOCUMENTS}) > 280
    for each in DOCUMENTS:
        assert set(each) - {"source"} == {"kind", "messages" if each["kind"] == "dialogue" else "text"}
    everything = "".join(map(_text_of, DOCUMENTS))
    assert len(everything) > 400_000
    assert all(sign in everything for sign in "学のя한عहשিதกλđğłåñßéã=")
    for messages in (each["messages"] for each in DOCUMENTS if "messages" in each):
        roles = [it["role"] for it in messages if it["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_each_part_of_the_builtin_text_has_the_mix_of_the_whole() -> None:
    total, before = sum(len(_text_of(each)) for each in DOCUMENTS), 0
    characters = [Counter[str]() for _ in range(PARTS)]
    for each in DOCUMENTS:
        size = len(_text_of(each))
        characters[(before + size // 2) * PARTS // total][each["kind"]] += size
        before += size
    for part in characters:
        shares = {kind: count / part.total() for kind, count in part.items()}
        assert set(shares) == {"prose", "dialogue", "language", "code", "mathematics"}
        assert 0.5 < shares["prose"] < 0.75


def _text_of(document: dict[str, Any]) -> str:
    return document.get("text") or "\n".join(it["content"] for it in document["messages"])
