"""The adapter for lm-eval: two tasks of local data end to end, and what transformers' own adapter answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny

TOLERANCE = 1e-3
"""Nats by which the log-likelihood of a token may differ from transformers', with weights of 16 bits."""

CAPITALS = [("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Japan", "Tokyo"), ("Egypt", "Cairo")]
CHOICE = """
task: local_capitals
output_type: multiple_choice
doc_to_text: "The capital of {{country}} is"
doc_to_choice: "{{cities}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
GENERATION = """
task: local_counting
output_type: generate_until
doc_to_text: "Count on: {{given}},"
doc_to_target: "{{next}}"
generation_kwargs: {until: [",", "\\n"], max_gen_toks: 6}
metric_list: [{metric: exact_match}]
"""
TEXTS = [
    "The water of a river flows from the mountains to the sea, and rain brings it back again.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(2, 3))\n",
    "Il y a des jours où le soleil brille, et d'autres où il pleut du matin au soir.",
]


def test_what_is_missing_is_named() -> None:
    """In one line that says what to install, wherever lm-eval is not."""
    script = "import sys\nsys.modules['lm_eval'] = None\nimport quantkit.lm_eval"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "OptionError: quantkit.lm_eval needs lm-eval" in done.stderr
    assert "pip install 'quantkit[eval]'" in done.stderr
    script = (
        "import runpy, sys\nsys.modules['lm_eval'] = None\nrunpy.run_module('quantkit.lm_eval', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: quantkit.lm_eval needs lm-eval")


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder of two tasks and their data."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    cities = [city for _, city in CAPITALS]
    rows: dict[str, list[dict[str, Any]]] = {
        "capitals": [
            {"country": country, "cities": [f" {city}" for city in cities], "answer": number}
            for number, (country, _) in enumerate(CAPITALS)
        ],
        "counting": [
            {"given": ", ".join(map(str, range(first, first + 8))), "next": f" {first + 8}"}
            for first in (1, 11, 20, 31)
        ],
    }
    for name, task in (("capitals", CHOICE), ("counting", GENERATION)):
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(task + "".join(f"{key}: {json.dumps(source[key])}\n" for key in source))
    return folder


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub, and no cache outside of the test's folder."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))


@pytest.fixture
def make() -> Iterator[Callable[..., Any]]:
    """Make the adapter's model; its threads end with the test."""
    from quantkit.lm_eval import QuantkitLM

    made = []

    def make(*args: Any, **options: Any) -> Any:
        made.append(QuantkitLM(*args, **options))
        return made[-1]

    yield make
    for each in made:
        each.model.close()


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def evaluated(model: Any, folder: Path, **options: Any) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    names = ["local_capitals", "local_counting"]
    found: dict[str, Any] = simple_evaluate(model, tasks=names, task_manager=manager, bootstrap_iters=0, **options)
    return {name: found["results"][name] for name in names}


@pytest.mark.real
def test_two_tasks_of_local_data(tasks: Path, make: Callable[..., Any]) -> None:
    """By the registered name; a packed model does the same. A model of 135M knows these capitals, and how to count."""
    import quantkit.lm_eval  # noqa: F401

    folder = os.environ["QUANTKIT_TEST_MODEL"]
    found = evaluated("quantkit", tasks, model_args=f"pretrained={folder},threads=2", batch_size=4)
    assert found["local_capitals"]["acc,none"] == 1
    assert found["local_counting"]["exact_match,none"] == 1
    assert evaluated(make(folder, batch_size=1), tasks) == found


@pytest.mark.real
def test_answers_are_those_of_transformers(make: Callable[..., Any]) -> None:
    from lm_eval.models.huggingface import HFLM

    folder = os.environ["QUANTKIT_TEST_MODEL"]
    ours = make(folder, max_length=64, kv_bits=32)
    theirs = HFLM(folder, dtype="float32", device="cpu", max_length=64, batch_size=8)
    pairs = [(f"The capital of {country} is", f" {city}") for country, _ in CAPITALS[:2] for _, city in CAPITALS]
    pairs += [(text[:at], text[at:]) for text in TEXTS for at in (0, 30)]
    for (_, continuation), a, b in zip(
        pairs, *(each.loglikelihood(instances("loglikelihood", pairs)) for each in (ours, theirs)), strict=True
    ):
        assert a[1] == b[1]
        assert a[0] == pytest.approx(b[0], abs=TOLERANCE * len(ours.tok_encode(continuation)))
    long = [(" ".join(TEXTS),), (TEXTS[1],)]  # the first is longer than two windows
    rolling = [each.loglikelihood_rolling(instances("loglikelihood_rolling", long)) for each in (ours, theirs)]
    for (text,), a, b in zip(long, *rolling, strict=True):
        assert a == pytest.approx(b, abs=TOLERANCE * len(ours.tok_encode(text)))
    asked = [(text[:40], {"until": ["."], "max_gen_toks": 12}) for text in TEXTS]
    written = [each.generate_until(instances("generate_until", asked)) for each in (ours, theirs)]
    assert written[0] == written[1]


@pytest.mark.live
def test_lm_eval_s_command_line(tasks: Path, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "model")
    command = [sys.executable, "-m", "quantkit.lm_eval", "run", "--model", "quantkit", "--tasks", "local_counting"]
    command += ["--model_args", f"pretrained={folder}", "--include_path", str(tasks), "--batch_size", "auto"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "local_counting" in done.stdout


@pytest.mark.live
def test_it_needs_no_torch(tasks: Path, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "model")
    script = (
        "import sys\nfor name in ('torch', 'transformers'): sys.modules[name] = None\n"
        "from quantkit.lm_eval import QuantkitLM\nfrom lm_eval.api.instance import Instance\n"
        f"model = QuantkitLM({str(folder)!r})\n"
        "print(model.loglikelihood([Instance('loglikelihood', {}, ('the', ' one'), 0)]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[(-")


@pytest.mark.live
def test_conversations_are_written_by_the_chat_template(tmp_path: Path, make: Callable[..., Any]) -> None:
    model = make(tiny.checkpoint(tmp_path / "model"))
    chat = [{"role": "user", "content": "and for you"}, {"role": "assistant", "content": "that was "}]
    asked = model.apply_chat_template(chat[:1])
    assert asked == model.tokenizer.apply_chat_template(chat[:1])
    assert model.apply_chat_template(chat, add_generation_prompt=False).endswith("that was")
    assert model.chat_template(True) == str(model.tokenizer.chat_template.held)
    assert model.chat_template(False) == ""
    bos = model.tokenizer.bos_token_id
    assert model.tok_encode(asked).count(bos) == max(1, asked.count("<|begin_of_text|>"))


@pytest.mark.live
@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"kv_bits": 4}, "kv_bits is 4"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_gen_toks": "many"}, "max_gen_toks is 'many'"),
        ({"max_length": 1 << 30}, "context is 1073741824"),
    ],
)
def test_options_that_make_no_sense(
    options: dict[str, Any], cause: str, tmp_path: Path, make: Callable[..., Any]
) -> None:
    from quantkit import OptionError

    with pytest.raises(OptionError, match=cause):
        make(tiny.checkpoint(tmp_path / "model"), **options)


@pytest.mark.live
def test_generation_as_tasks_ask_for_it(tmp_path: Path, make: Callable[..., Any]) -> None:
    from quantkit import OptionError

    model = make(tiny.checkpoint(tmp_path / "model"), max_length=32, max_gen_toks=5)
    sampled = {"until": [], "do_sample": True, "temperature": 1.0, "top_k": 20, "max_tokens": 8}
    asked = [("the one and " * 30, {"until": None}), ("", {"until": "e"}), ("you", sampled), ("you", sampled)]
    cut, _, first, second = model.generate_until(instances("generate_until", asked))
    assert cut is not None
    assert first == second
    for options, cause in (({"until": [], "num_beams": 2}, "num_beams"), ({"max_gen_toks": 32}, "less than the model")):
        with pytest.raises(OptionError, match=cause):
            model.generate_until(instances("generate_until", [("the", options)]))
