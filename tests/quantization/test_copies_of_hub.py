"""`run ORG/NAME` packs once, notices when the model changes, and needs neither download nor hub afterwards."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

import tiny
from hub_server import Fault, HubServer
from quantkit import formats
from quantkit.errors import OptionError, PackedModelError, UnsupportedError
from quantkit.formats.hub import HubError
from quantkit.formats.packed import verify
from quantkit.quantization.conversion import convert
from quantkit.quantization.packed_copies import list_copies, packed_copy, remove_copies
from quantkit.quantization.report import Progress

NAME = "org/tiny"
NOW = int(time.time())
LISTING = "/api/models/org/tiny/revision/main"


@pytest.fixture(autouse=True)
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that holds the packed copies."""
    monkeypatch.setenv("QUANTKIT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache/models"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny.checkpoint(tmp_path / "tiny")


def copy_of(name: str) -> Path:
    with packed_copy(name) as folder:
        return folder


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def remove_the_download(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "hf/hub/models--org--tiny")


def test_it_is_packed_once(hub: HubServer, checkpoint: Path, tmp_path: Path) -> None:
    hub.add(NAME, checkpoint)
    folder = copy_of(NAME)
    assert verify(folder)
    convert(checkpoint, tmp_path / "packed")
    assert weights(folder) == weights(tmp_path / "packed")
    hub.requests.clear()
    assert copy_of(NAME) == folder
    assert hub.paths() == [LISTING]


def test_what_was_packed_says_its_name(hub: HubServer, checkpoint: Path) -> None:
    hub.add(NAME, checkpoint)
    source = formats.open(copy_of(NAME))
    assert isinstance(source, formats.packed.PackedModel)
    assert source.manifest["source"]["name"] == NAME


def test_without_the_download_the_weights_do_not_come_again(hub: HubServer, checkpoint: Path, tmp_path: Path) -> None:
    hub.add(NAME, checkpoint)
    folder = copy_of(NAME)
    remove_the_download(tmp_path)
    hub.requests.clear()
    assert copy_of(NAME) == folder
    assert "model.safetensors" not in hub.downloads()


def test_a_change_of_the_model_is_noticed(hub: HubServer, checkpoint: Path, copies: Path, tmp_path: Path) -> None:
    hub.add(NAME, checkpoint)
    before = copy_of(NAME)
    hub.add(NAME, {**{file.name: file.read_bytes() for file in checkpoint.iterdir()}, "README.md": b"# Tiny"})
    assert copy_of(NAME) == before  # which changes nothing
    hub.add(NAME, tiny.checkpoint(tmp_path / "new", seed=1))
    after = copy_of(NAME)
    assert after != before
    assert os.listdir(copies) == [after.name]
    convert(tmp_path / "new", tmp_path / "packed")
    assert weights(after) == weights(tmp_path / "packed")


def test_revisions_have_their_own_copies(hub: HubServer, checkpoint: Path, copies: Path, tmp_path: Path) -> None:
    hub.add(NAME, checkpoint)
    hub.add(NAME, tiny.checkpoint(tmp_path / "new", seed=1), branch="v2")
    assert copy_of(NAME) != copy_of(f"{NAME}@v2")
    assert {copy.name for copy in list_copies()} == {NAME, f"{NAME}@v2"}


@pytest.mark.parametrize("offline", [True, False])
def test_without_the_hub(
    hub: HubServer,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    offline: bool,
) -> None:
    hub.add(NAME, checkpoint)
    folder = copy_of(NAME)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    hub.requests.clear()
    assert copy_of(NAME) == folder
    remove_the_download(tmp_path)
    caplog.clear()
    assert copy_of(NAME) == folder
    assert "using what was packed before" in caplog.text
    assert hub.requests == []
    shutil.rmtree(folder)
    with pytest.raises(HubError, match=NAME):
        copy_of(NAME)


def test_a_new_revision_that_does_not_come_is_no_reason_to_forget_the_old_one(
    hub: HubServer, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, checkpoint)
    folder = copy_of(NAME)
    hub.add(NAME, tiny.checkpoint(tmp_path / "new", seed=1))
    hub.faults["model.safetensors"] = [Fault(status=403)]
    with pytest.raises(HubError, match="answers 403"):
        copy_of(NAME)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert copy_of(NAME) == folder


def test_a_packed_model_of_the_hub_is_its_own(hub: HubServer, checkpoint: Path, copies: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "packed")
    hub.add("org/packed", tmp_path / "packed")
    folder = copy_of("org/packed")
    assert folder.parent.name == "snapshots"
    assert verify(folder)
    assert not copies.exists()


def test_models_that_cannot_run_are_refused_before_their_weights_come(hub: HubServer, checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text('{"model_type": "rwkv"}')
    hub.add(NAME, checkpoint)
    with pytest.raises(UnsupportedError, match="rwkv"):
        copy_of(NAME)
    assert "model.safetensors" not in hub.downloads()


def test_copies_are_listed_and_removed(hub: HubServer, checkpoint: Path, copies: Path) -> None:
    commit = hub.add(NAME, checkpoint)
    assert list_copies() == []
    folders = {copy_of(NAME), copy_of(str(checkpoint))}
    found = {copy.name: copy for copy in list_copies()}
    assert found.keys() == {NAME, str(checkpoint)}
    assert (found[NAME].source, found[str(checkpoint)].source) == (f"hub, commit {commit[:8]}", "folder")
    for copy in found.values():
        assert copy.path in folders
        assert (copy.kind, copy.complete) == ("mixed", True)
        size = sum(file.stat().st_size for file in copy.path.iterdir())
        assert size <= copy.nbytes <= size + 4096 * len(list(copy.path.iterdir()))
    with pytest.raises(OptionError, match=r"org/tinx: no packed model of this name is in the cache"):
        remove_copies([NAME, "org/tinx"])
    assert len(list_copies()) == 2
    assert remove_copies([NAME]) == [found[NAME]]
    assert os.listdir(copies) == [found[str(checkpoint)].path.name]
    assert len(os.listdir(copies.parent / "sources")) == 1


def test_the_copy_that_was_used_last_is_the_first(checkpoint: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        folder = copy_of(str(tiny.checkpoint(tmp_path / str(seed), seed=seed)))
        os.utime(folder, (NOW - seed * 60,) * 2)
    assert [Path(copy.name).name for copy in list_copies()] == ["1", "2"]
    assert list_copies()[0].used == NOW - 60


def test_a_copy_that_is_being_opened_is_not_removed(checkpoint: Path) -> None:
    with packed_copy(str(checkpoint)) as folder:
        with pytest.raises(PackedModelError, match="is in use by another process; try again"):
            remove_copies([str(checkpoint)])
        assert verify(folder)
    remove_copies([str(checkpoint)])
    assert list_copies() == []


def test_what_was_interrupted_is_listed_and_removed(checkpoint: Path, copies: Path) -> None:
    def interrupt(_: Progress) -> None:
        (copy,) = list_copies()
        with pytest.raises(PackedModelError, match="is in use by another process"):
            remove_copies([copy.name])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), packed_copy(str(checkpoint), progress=interrupt):
        pytest.fail("the copy was not made")
    (copy,) = list_copies()
    assert (copy.name, copy.source, copy.complete) == (str(checkpoint), "folder", False)
    assert remove_copies([str(checkpoint)]) == [copy]
    assert list_copies() == []
    assert os.listdir(copies) == []
