"""Names of models become paths; those of the hub after a download, unless they cannot be used."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import tiny
from hub_server import HubServer
from quantkit.engine.opening import local_path, open_model
from quantkit.errors import PackedModelError, UnsupportedError

NAME = "org/tiny"


def test_paths_stay_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for path in (f"./{NAME}", "tiny", "a/b/c", str(tmp_path), Path(NAME)):
        assert local_path(path) == Path(path)
    assert local_path("~/tiny") == Path("~/tiny").expanduser()
    monkeypatch.chdir(tmp_path)
    tiny.checkpoint(tmp_path / NAME)
    assert open_model(NAME).path == Path(NAME)


def test_names_on_the_hub(hub: HubServer, tmp_path: Path) -> None:
    hub.add(NAME, tiny.checkpoint(tmp_path / "tiny"))
    assert open_model(NAME).names == open_model(tmp_path / "tiny").names
    with pytest.raises(PackedModelError, match="org/tiny: is not a packed model"):
        local_path(NAME, packed=True)


@pytest.mark.parametrize("model_type", ["rwkv", "t5"])
def test_what_cannot_be_run_is_refused_before_it_comes(hub: HubServer, tmp_path: Path, model_type: str) -> None:
    folder = tiny.checkpoint(tmp_path / "tiny")
    (folder / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    hub.add(NAME, folder)
    with pytest.raises(UnsupportedError, match=model_type):
        open_model(NAME)
    assert "model.safetensors" not in hub.downloads()
