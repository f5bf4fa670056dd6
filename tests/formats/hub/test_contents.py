"""Which files of a repository a model needs: one set of weights, what says something of it, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from quantkit.errors import CheckpointError, QuantkitError, UnsupportedError
from quantkit.formats.hub.contents import Contents, HubFile
from quantkit.formats.hub.names import HubName

TEXT = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
INDEX = "model.safetensors.index.json"
OTHER = [".gitattributes", "original/consolidated.00.pth", "onnx/model.onnx", "pytorch_model.bin"]
OTHER += ["onnx/model.safetensors", "training_args.bin", "flax_model.msgpack", "tf_model.h5", "images/a.png"]
PARTS = [f"q8/tiny-Q8_0-0000{number}-of-00002.gguf" for number in (1, 2)]
GGUF = ["tiny-Q4_K_M.gguf", "tiny-Q4_K_S.gguf", *PARTS, "mmproj-Q8_0.gguf", "imatrix.dat"]


def contents(files: Iterable[str], file: str = "") -> Contents:
    """A repository whose files have 2.5 MB each."""
    return Contents(
        HubName("org/tiny", file=file), "0" * 40, {name: HubFile(name, 2_500_000, "0" * 40) for name in files}
    )


def names(files: Iterable[HubFile]) -> list[str]:
    return [file.name for file in files]


def test_small_files() -> None:
    found = contents(
        [*TEXT, *SHARDS, *OTHER, "README.md", "quantkit.json", "tokenizer.model", "sub/config.json"]
    ).small()
    assert set(names(found)) == {*TEXT, "README.md", "quantkit.json", "tokenizer.model"}


def test_files_of_a_tokenizer() -> None:
    assert contents([*TEXT, *GGUF]).tokenizer() == contents(TEXT).small()
    assert names(contents(["config.json", "tekken.json"]).tokenizer()) == ["config.json", "tekken.json"]
    with pytest.raises(CheckpointError, match=r"name one of them: org/tiny:.*\.gguf \(2\.5 MB\)"):
        contents(["config.json", "README.md", *GGUF]).tokenizer()


WEIGHTS: dict[str, tuple[list[str], set[str], list[str]]] = {
    "one file": (["model.safetensors", "consolidated.safetensors"], set(), ["model.safetensors"]),
    "shards": ([INDEX, *SHARDS, "consolidated.safetensors"], {*SHARDS}, SHARDS),
    "one file and shards": (["model.safetensors", INDEX, *SHARDS], {*SHARDS}, ["model.safetensors"]),
    "left-over shards": ([INDEX, *SHARDS, "model-00001-of-00009.safetensors"], {*SHARDS}, SHARDS),
    "shards without an index": ([*SHARDS, "consolidated.safetensors"], set(), SHARDS),
    "one file of another name": (["weights.safetensors"], set(), ["weights.safetensors"]),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights(case: str) -> None:
    files, shards, expected = WEIGHTS[case]
    assert names(contents([*files, *TEXT, *OTHER, *GGUF]).weights(shards)) == expected


REFUSED: dict[str, tuple[list[str], set[str], type[QuantkitError], list[str]]] = {
    "pickles": (["pytorch_model.bin"], set(), UnsupportedError, ["org/tiny: its weights are pickles", ".bin"]),
    "pickles in parts": (["pytorch_model-00001-of-00002.bin"], set(), UnsupportedError, ["pickles"]),
    "nothing": ([], set(), CheckpointError, ["org/tiny: has neither model.safetensors nor"]),
    "a missing shard": ([INDEX, *SHARDS[1:]], {*SHARDS}, CheckpointError, [SHARDS[0]]),
    "a missing shard without an index": (SHARDS[1:], set(), CheckpointError, [SHARDS[0]]),
    "a shard elsewhere": ([INDEX, "sub/a.safetensors"], {"sub/a.safetensors"}, CheckpointError, ["sub/a.safe"]),
    "several files": (["a.safetensors", "b.safetensors"], set(), CheckpointError, ["a.safetensors, b.safetensors"]),
    "a pipeline": (["model_index.json"], set(), UnsupportedError, ["is a diffusion pipeline"]),
    "GGUF files": (
        [*GGUF, "pytorch_model.bin"],
        set(),
        CheckpointError,
        [
            "org/tiny:q8/tiny-Q8_0-00001-of-00002.gguf (5.0 MB), org/tiny:tiny-Q4_K_M.gguf (2.5 MB), "
            "org/tiny:tiny-Q4_K_S.gguf (2.5 MB)"
        ],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_repositories_without_weights_say_what_they_hold(case: str) -> None:
    files, shards, error, words = REFUSED[case]
    with pytest.raises(error) as caught:
        contents([*files, *TEXT]).weights(shards)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("tiny-Q4_K_M.gguf", ["tiny-Q4_K_M.gguf"]),
        ("Q4_K_M", ["tiny-Q4_K_M.gguf"]),
        ("q4_k_s", ["tiny-Q4_K_S.gguf"]),
        ("Q8_0", PARTS),
        (PARTS[0], PARTS),
        (PARTS[1], PARTS),
    ],
)
def test_a_gguf_file_with_all_its_parts(file: str, expected: list[str]) -> None:
    assert names(contents([*TEXT, *GGUF], file).gguf()) == expected


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("tiny-Q5_K_M.gguf", ["org/tiny:tiny-Q5_K_M.gguf: ", "org/tiny:tiny-Q4_K_M.gguf (2.5 MB)"]),
        ("tiny", ["is not the name of one file", "org/tiny:tiny-Q4_K_S.gguf"]),
        ("Q4", ["is not the name of one file"]),
        ("config.json", ["is no GGUF file"]),
    ],
)
def test_other_names_are_told_what_there_is(file: str, words: list[str]) -> None:
    with pytest.raises(CheckpointError) as caught:
        contents([*TEXT, *GGUF], file).gguf()
    for word in words:
        assert word in str(caught.value)


def test_a_missing_part() -> None:
    with pytest.raises(CheckpointError, match=r"one part of 2; 'q8/tiny-Q8_0-00002-of-00002\.gguf' is not in"):
        contents(PARTS[:1], PARTS[0]).gguf()
    with pytest.raises(CheckpointError, match="has no GGUF file"):
        contents(SHARDS, "Q8_0").gguf()
