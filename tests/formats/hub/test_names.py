"""What is a name on the hub and what is a path, and what a model is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantkit.errors import CheckpointError
from quantkit.formats.hub.names import HubName, hub_name, shown_name

NAMES = {
    "org/name": HubName("org/name"),
    "meta-llama/Llama-3.2-1B-Instruct": HubName("meta-llama/Llama-3.2-1B-Instruct"),
    "o.r-g/na_me-1.5": HubName("o.r-g/na_me-1.5"),
    "org/name@main": HubName("org/name"),
    "org/name@v1.0": HubName("org/name", "v1.0"),
    "org/name@refs/pr/1": HubName("org/name", "refs/pr/1"),
    "org/name:a.Q4_K_M.gguf": HubName("org/name", file="a.Q4_K_M.gguf"),
    "org/name:Q4_K_M": HubName("org/name", file="Q4_K_M"),
    "org/name-GGUF@v1:sub/a-00001-of-00002.gguf": HubName("org/name-GGUF", "v1", "sub/a-00001-of-00002.gguf"),
}
PATHS = ["", "name", "./org/name", "../name", "org/..", "/org/name", "~/name", "a/b/c", "org/name/", "org/name.gguf"]
PATHS += ["org/name.safetensors", "org/tokenizer.json", "org/na--me", "-org/name", ".org/name", "or g/name", "org/né"]
PATHS += ["org/name@../../name", "org/name:../name", "org/name@", "org/name:", "org/name:a:b", "org/name@v1@v2"]
PATHS += ["org/na\0me", "org/name\n"]


@pytest.mark.parametrize("text", NAMES)
def test_names(text: str) -> None:
    assert hub_name(text) == NAMES[text]
    assert str(NAMES[text]) == text.replace("@main", "")


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://huggingface.co/org/name", "org/name"),
        ("http://www.huggingface.co/org/name/", "org/name"),
        ("huggingface.co/org/name?library=x#files", "org/name"),
        ("https://huggingface.co/org/na.me-1/tree/main", "org/na.me-1"),
        ("https://huggingface.co/org/name/tree/v1.0", "org/name@v1.0"),
        ("https://huggingface.co/org/name/blob/main/a-Q4_0.gguf", "org/name:a-Q4_0.gguf"),
        ("https://huggingface.co/org/name/resolve/v1/in/a.gguf?download=true", "org/name@v1:in/a.gguf"),
        ("hf.co/org/name:Q4_K_M", "org/name:Q4_K_M"),
    ],
)
def test_an_address_of_the_hub_is_a_name(address: str, name: str) -> None:
    assert str(hub_name(address)) == name


def test_other_addresses_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"^https://example\.org/a/b: is no address of the Hugging Face hub"):
        hub_name("https://example.org/a/b")


@pytest.mark.parametrize("text", PATHS)
def test_paths(text: str) -> None:
    assert hub_name(text) is None


def test_a_path_object_is_a_path() -> None:
    assert hub_name(Path("org/name")) is None


def test_what_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    assert hub_name("org/name") == HubName("org/name")
    (tmp_path / "org/name").symlink_to("nowhere")
    assert hub_name("org/name") is None
    assert hub_name("org/name:a.gguf") is not None
    (tmp_path / "org/name:a.gguf").touch()
    assert hub_name("org/name:a.gguf") is None


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (f"/home/me/.cache/huggingface/hub/models--org--na-me/snapshots/{'0' * 40}", "org/na-me"),
        (f"hub/models--org--name/snapshots/{'a' * 40}/sub/x.gguf", "org/name:sub/x.gguf"),
        ("models/tiny", "tiny"),
        ("/tmp/models--org--name/snapshots/latest", "latest"),
    ],
)
def test_what_a_model_is_called(path: str, name: str) -> None:
    assert shown_name(path) == name
