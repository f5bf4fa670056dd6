"""Loading: options that make no sense are refused by name, before the weights are looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny
import tiny_gguf
from hub_server import HubServer
from quantkit.errors import CheckpointError, OptionError
from quantkit.generation.loading import load, load_model, load_tokenizer


@pytest.mark.parametrize(
    "wrong",
    [
        *({"threads": value} for value in (0, -1, 1.5, True, "2")),
        *({"context": value} for value in (0, 257, 8.5, True, "8")),
        *({"numa": value} for value in ("", "numactl", 1, True)),
        *({"mmap": value} for value in (None, "", 1)),
    ],
)
def test_bad_options_are_named(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"^{next(iter(wrong))} is "):
        load_model(tiny.checkpoint(tmp_path / "model"), **wrong)


def test_names_on_the_hub(hub: HubServer, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "model")
    hub.add("org/model", folder)
    tokenizer = load_tokenizer("org/model")
    assert "model.safetensors" not in hub.downloads()
    model, same = load("org/model")
    expected = load_model(folder)(tokenizer.encode("the one"))
    assert (model(same.encode("the one")) == expected).all()
    with pytest.raises(OptionError, match="which org/model was made for"):
        load_model("org/model", context=1 << 30)
    with pytest.raises(CheckpointError, match=r"^org/model: no such file"):
        load(Path("org/model"))


def test_a_tokenizer_alone(tmp_path: Path) -> None:
    """Of a folder; and of a GGUF file of an unknown architecture, without tensors."""
    folder = load_tokenizer(tiny.checkpoint(tmp_path / "model"))
    file = load_tokenizer(tiny_gguf.write(tmp_path / "vocabulary", tensors={}, architecture="unheard-of"))
    assert folder.encode("the one") == file.encode("the one")
    assert folder.eos_token_ids == file.eos_token_ids
    with pytest.raises(CheckpointError, match="no format that quantkit knows"):
        load_tokenizer(tmp_path / "model" / "config.json")
