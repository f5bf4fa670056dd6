"""What is downloaded, what is left, what is said where that fails; and how a download goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
import tiny_gguf
from hub_server import Fault, HubServer, etag
from quantkit import formats
from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.formats.hub import Download, HubError, find, hub_name, transfer

WEIGHTS = "model.safetensors"
OTHERS = {
    "original/consolidated.00.pth": b"\x80\2.",
    "pytorch_model.bin": b"\x80\2.",
    "consolidated.safetensors": b"{}",
    "onnx/config.json": b"{}",
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny.checkpoint(tmp_path / "tiny")


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "WAITS", (0.0, 0.0, 0.0, 0.0))


def local_path(name: str, progress: Callable[[Download], None] | None = None, **options: Any) -> Path:
    """Return where a model of the hub is on this machine, once it is there."""
    known = hub_name(name)
    assert known is not None
    return find(known, **options).fetch(progress)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def with_others(folder: Path) -> dict[str, bytes]:
    return {**files_of(folder), **OTHERS}


@pytest.mark.parametrize("shards", [1, 2])
def test_what_is_needed_is_downloaded_once(hub: HubServer, tmp_path: Path, shards: int) -> None:
    folder = tiny.checkpoint(tmp_path / "tiny", shards=shards)
    commit = hub.add("org/tiny", with_others(folder))
    steps: list[Download] = []
    path = local_path("org/tiny", progress=steps.append)
    assert path == tmp_path / f"hf/hub/models--org--tiny/snapshots/{commit}"
    assert files_of(path) == files_of(folder)
    assert sorted(hub.downloads()) == sorted(files_of(folder))
    assert (tmp_path / "hf/hub/models--org--tiny/refs/main").read_text() == commit
    assert steps[-1].done == steps[-1].total == sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    hub.requests.clear()
    assert local_path("org/tiny", progress=steps.append) == path
    assert hub.paths() == ["/api/models/org/tiny/revision/main"]


def test_huggingface_hub_finds_what_was_downloaded(hub: HubServer, checkpoint: Path) -> None:
    from huggingface_hub import try_to_load_from_cache

    hub.add("org/tiny", checkpoint)
    path = local_path("org/tiny")
    for name in files_of(checkpoint):
        assert try_to_load_from_cache("org/tiny", name, cache_dir=path.parents[2]) == str(path / name)


def test_what_huggingface_hub_downloaded_is_found(hub: HubServer, checkpoint: Path, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    hub.add("org/tiny", checkpoint)
    others = files_of(checkpoint).keys() - {"config.json"}
    paths = [Path(hf_hub_download("org/tiny", name, cache_dir=tmp_path / "hf/hub")) for name in others]
    hub.requests.clear()
    assert local_path("org/tiny") == paths[0].parent
    assert hub.downloads() == ["config.json"]


def test_revisions(hub: HubServer, checkpoint: Path, tmp_path: Path) -> None:
    old = hub.add("org/tiny", checkpoint)
    hub.add("org/tiny", checkpoint, branch="refs/pr/1")
    new = hub.add("org/tiny", tiny.checkpoint(tmp_path / "new", seed=1))
    assert local_path("org/tiny").name == local_path("org/tiny@main").name == new
    assert local_path("org/tiny@refs/pr/1").name == local_path(f"org/tiny@{old}").name == old
    with pytest.raises(HubError, match=r"org/tiny@v2: the repository has no revision 'v2'"):
        local_path("org/tiny@v2")


def test_a_moved_revision_is_noticed_and_equal_files_stay(hub: HubServer, checkpoint: Path) -> None:
    hub.add("org/tiny", checkpoint)
    before = local_path("org/tiny")
    (checkpoint / "config.json").write_text(f"{(checkpoint / 'config.json').read_text()}\n")
    hub.add("org/tiny", checkpoint)
    hub.requests.clear()
    after = local_path("org/tiny")
    assert after != before
    assert hub.downloads() == ["config.json"]
    assert files_of(after) == files_of(checkpoint)


@pytest.mark.parametrize("name", ["org/tiny:tiny.gguf", "org/tiny:TINY"])
def test_a_gguf_file(hub: HubServer, checkpoint: Path, tmp_path: Path, name: str) -> None:
    gguf = tiny_gguf.write(tmp_path / "tiny.gguf")
    hub.add("org/tiny", {**files_of(checkpoint), "tiny.gguf": gguf.read_bytes(), "other.gguf": b"GGUF"})
    path = local_path(name)
    assert path.name == "tiny.gguf"
    assert hub.downloads() == ["tiny.gguf"]
    assert formats.open(path).names == formats.open(gguf).names


def test_a_gguf_file_in_parts(hub: HubServer, tmp_path: Path) -> None:
    tensors = list(tiny_gguf.weights().items())
    for number in (0, 1):
        place: tiny_gguf.Changes = {"split.no": (number, tiny_gguf.U16), "split.count": (2, tiny_gguf.U16)}
        nothing: tiny_gguf.Changes = dict.fromkeys(tiny_gguf.metadata()) if number else {}
        path = tmp_path / f"repository/q8/tiny-Q8_0-0000{number + 1}-of-00002.gguf"
        path.parent.mkdir(parents=True, exist_ok=True)
        tiny_gguf.write(path, {**nothing, **place}, dict(tensors[number::2]))
    hub.add("org/tiny", tmp_path / "repository")
    whole = formats.open(tiny_gguf.write(tmp_path / "whole.gguf"))
    for name in ("Q8_0", "q8/tiny-Q8_0-00002-of-00002.gguf"):
        path = local_path(f"org/tiny:{name}")
        assert path.name == "tiny-Q8_0-00001-of-00002.gguf"
        assert sorted(formats.open(path).names) == sorted(whole.names)


def test_small_files_alone(hub: HubServer, checkpoint: Path) -> None:
    hub.add("org/tiny", with_others(checkpoint))
    path = local_path("org/tiny", weights=False)
    assert files_of(path) == {name: data for name, data in files_of(checkpoint).items() if name != WEIGHTS}


class Refusal(Exception):
    pass


def test_a_config_is_checked_before_the_weights_come(hub: HubServer, checkpoint: Path) -> None:
    hub.add("org/tiny", checkpoint)

    def check(config: Any) -> None:
        raise Refusal(config["model_type"])

    with pytest.raises(Refusal, match="llama"):
        local_path("org/tiny", check=check)
    assert WEIGHTS not in hub.downloads()
    changed = json.dumps({"model_type": "llama", "quantization_config": {"quant_method": "unheard-of"}}).encode()
    hub.add("org/tiny", {**files_of(checkpoint), "config.json": changed})
    with pytest.raises(UnsupportedError, match="unheard-of"):
        local_path("org/tiny")
    hub.add("org/tiny", {"pytorch_model.bin": b"\x80\2.", "config.json": b"{}"})
    with pytest.raises(UnsupportedError, match="org/tiny: its weights are pickles"):
        local_path("org/tiny")
    assert WEIGHTS not in hub.downloads()


def test_several_files_come_at_once(hub: HubServer, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "tiny", shards=3)
    hub.add("org/tiny", folder)
    slow, *others = sorted(file.name for file in folder.glob("*.safetensors"))
    hub.faults[slow] = [Fault(after=1000, hang=0.9, until=name) for name in others * 9]
    steps: list[Download] = []
    path = local_path("org/tiny", progress=steps.append)
    assert files_of(path) == files_of(folder)
    last = max(number for number, name in enumerate(hub.downloads()) if name == slow)
    assert set(others) <= set(hub.downloads()[:last])
    assert [step.done for step in steps] == sorted(step.done for step in steps)


INTERRUPTIONS: dict[str, list[Fault]] = {
    "dropped": [Fault(after=100_000)],
    "dropped often": [Fault(after=20_000)] * 12,
    "dropped at once": [Fault(after=1)] * 3,
    "hangs": [Fault(after=50_000, hang=3), Fault(after=9, hang=3)],
    "busy": [Fault(status=503), Fault(status=429), Fault(after=70_000), Fault(status=500)],
    "short": [Fault(cut=60_000), Fault(after=9)],
    "no ranges": [Fault(after=100_000), Fault(ignore_range=True)],
    "no ranges, dropped again": [Fault(after=100_000), Fault(after=150_000, ignore_range=True), Fault(after=1)],
}


@pytest.mark.parametrize("case", INTERRUPTIONS)
def test_interruptions_within_a_download(hub: HubServer, checkpoint: Path, case: str) -> None:
    hub.add("org/tiny", checkpoint)
    hub.faults[WEIGHTS] = list(INTERRUPTIONS[case])
    steps: list[Download] = []
    path = local_path("org/tiny", progress=steps.append)
    assert (path / WEIGHTS).read_bytes() == (checkpoint / WEIGHTS).read_bytes()
    assert steps[-1].done == steps[-1].total
    assert not hub.faults[WEIGHTS]


def test_the_next_start_goes_on(hub: HubServer, checkpoint: Path) -> None:
    hub.add("org/tiny", checkpoint)
    hub.faults[WEIGHTS] = [Fault(after=200_000), *[Fault(status=503)] * 5]
    with pytest.raises(HubError) as caught:
        local_path("org/tiny")
    assert "503" in str(caught.value)
    assert f"of {WEIGHTS} 0.2 MB of 0.3 MB are here, and the next start goes on from there" in str(caught.value)
    hub.requests.clear()
    steps: list[Download] = []
    path = local_path("org/tiny", progress=steps.append)
    assert (path / WEIGHTS).read_bytes() == (checkpoint / WEIGHTS).read_bytes()
    assert [headers["range"] for _, path, headers in hub.requests if "/cdn/" in path] == ["bytes=200000-"]
    assert steps[0].done == 200_000
    assert not list(path.parents[1].glob("blobs/*incomplete"))


def test_an_interrupt_keeps_what_has_come(hub: HubServer, checkpoint: Path) -> None:
    hub.add("org/tiny", checkpoint)
    hub.faults[WEIGHTS] = [Fault(after=200_000, hang=1)]

    def interrupt(now: Download) -> None:
        if now.file == WEIGHTS and now.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        local_path("org/tiny", progress=interrupt)
    hub.requests.clear()
    assert (local_path("org/tiny") / WEIGHTS).read_bytes() == (checkpoint / WEIGHTS).read_bytes()
    (begin,) = [headers["range"] for _, path, headers in hub.requests if "/cdn/" in path]
    assert begin.startswith("bytes=")


def test_what_is_not_what_the_hub_lists_is_fetched_again(hub: HubServer, checkpoint: Path) -> None:
    hub.add("org/tiny", checkpoint)
    for name, fault in (("tokenizer.json", Fault(flip=True)), (WEIGHTS, Fault(flip=True)), (WEIGHTS, Fault(cut=-9))):
        hub.faults[name] = [fault]
        with pytest.raises(HubError, match=f"org/tiny: {name} is not what the hub lists; start again"):
            local_path("org/tiny")
    path = local_path("org/tiny")
    assert files_of(path) == files_of(checkpoint)
    blob = path.parents[1] / "blobs" / etag(WEIGHTS, (checkpoint / WEIGHTS).read_bytes())
    blob.write_bytes(blob.read_bytes()[:-1])  # as a full disk leaves a file
    assert files_of(local_path("org/tiny")) == files_of(checkpoint)


def test_a_download_that_was_damaged_meanwhile(hub: HubServer, checkpoint: Path) -> None:
    hub.add("org/tiny", checkpoint)
    hub.faults[WEIGHTS] = [Fault(after=200_000), *[Fault(status=503)] * 5]
    with pytest.raises(HubError):
        local_path("org/tiny")
    (partial,) = Path(os.environ["HF_HOME"]).rglob("*.incomplete")
    for content in (b"\0" * 200_000, b"\0" * 1_000_000):
        partial.write_bytes(content)
        with pytest.raises(HubError, match="is not what the hub lists"):
            local_path("org/tiny")
    assert files_of(local_path("org/tiny")) == files_of(checkpoint)


def test_two_at_once_download_once(hub: HubServer, checkpoint: Path) -> None:
    hub.add("org/tiny", checkpoint)
    hub.faults[WEIGHTS] = [Fault(after=100_000, hang=0.5)]
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(local_path("org/tiny"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert files_of(found[0]) == files_of(checkpoint)
    assert hub.downloads().count(WEIGHTS) == 2  # once more after the connection was lost


def go_offline(monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def take_the_hub_away(monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


def let_the_hub_hang(monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.2)
    hub.faults["api"] = [Fault(hang=2)] * 9


def let_the_hub_fail(monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> None:
    hub.faults["api"] = [Fault(status=500)] * 9


def remove_the_model(monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> None:
    hub.repositories.clear()


ABSENCES: dict[Callable[[pytest.MonkeyPatch, HubServer], None], str] = {
    go_offline: "the hub is not asked: HF_HUB_OFFLINE is set",
    take_the_hub_away: "cannot be reached",
    let_the_hub_hang: "cannot be reached",
    let_the_hub_fail: "answers 500",
    remove_the_model: "there is no such model on",
}


@pytest.mark.parametrize("absence", ABSENCES)
def test_without_the_hub_what_is_here_is_used(
    hub: HubServer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, absence: Any
) -> None:
    hub.add("org/tiny", checkpoint)
    path = local_path("org/tiny")
    absence(monkeypatch, hub)
    assert local_path("org/tiny") == path
    assert (ABSENCES[absence] in caplog.text) == (absence is not go_offline)
    (path / WEIGHTS).unlink()
    with pytest.raises(HubError) as caught:
        local_path("org/tiny")
    assert ABSENCES[absence] in str(caught.value)
    assert "the download that is here is not complete: org/tiny: " in str(caught.value)
    shutil.rmtree(path.parents[1])
    with pytest.raises(HubError, match=r"^org/tiny: no such file or folder, and ") as caught:
        local_path("org/tiny")
    assert ABSENCES[absence] in str(caught.value)


def test_without_the_hub_the_commit_that_was_seen_last_is_used(
    hub: HubServer, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hub.add("org/tiny", checkpoint)
    local_path("org/tiny")
    hub.add("org/tiny", tiny.checkpoint(tmp_path / "new", seed=1))
    hub.faults[WEIGHTS] = [Fault(status=403)]
    with pytest.raises(HubError, match=r"answers 403 Forbidden; log in with `hf auth login`, or set HF_TOKEN"):
        local_path("org/tiny")
    go_offline(monkeypatch, hub)
    assert local_path("org/tiny").name == before


def test_gated_and_private_models(hub: HubServer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/tiny", checkpoint, gated=True)
    for token in ("", "hf_wrong"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(HubError) as caught:
            local_path("org/tiny")
        assert str(caught.value) == (
            f"org/tiny: the model is gated: accept its terms at {hub.url}/org/tiny, "
            "and log in with `hf auth login`, or set HF_TOKEN"
        )
    monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
    hub.requests.clear()
    assert files_of(local_path("org/tiny")) == files_of(checkpoint)
    assert all(("authorization" in headers) != path.startswith("/cdn/") for _, path, headers in hub.requests)
    with pytest.raises(HubError, match=r"org/nothing: no such file or folder, and there is no such model on .*; if"):
        local_path("org/nothing")


def test_a_full_disk_is_said_before_anything_comes(
    hub: HubServer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/tiny", checkpoint)
    usage = shutil.disk_usage("/")._replace(free=250_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(HubError, match=r"the download takes 0\.3 MB, and the disk has 0\.2 MB left; make room"):
        local_path("org/tiny")
    assert WEIGHTS not in hub.downloads()


def test_files_that_come_by_other_ways_alone(hub: HubServer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/tiny", checkpoint)
    monkeypatch.setattr("huggingface_hub.constants.MAX_HTTP_DOWNLOAD_SIZE", 200_000)
    with pytest.raises(HubError, match=f"get it with `hf download org/tiny {WEIGHTS}` first"):
        local_path("org/tiny")


def test_a_cache_that_cannot_be_written(hub: HubServer, checkpoint: Path, tmp_path: Path) -> None:
    hub.add("org/tiny", checkpoint)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/hub").touch()
    with pytest.raises(HubError, match=r"hf/hub/.*: cannot be written: Not a directory"):
        local_path("org/tiny")


def test_file_systems_without_links(hub: HubServer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    hub.add("org/tiny", checkpoint)
    path = local_path("org/tiny")
    assert files_of(path) == files_of(checkpoint)
    assert not any(file.is_symlink() for file in path.iterdir())
    hub.requests.clear()
    assert local_path("org/tiny") == path
    assert hub.downloads() == []


@pytest.mark.parametrize(
    "answer",
    [b"", b"[]", b"<html>", b'{"sha": "../..", "siblings": []}', b'{"sha": 1}', b'{"siblings": []}'],
)
def test_what_is_no_hub(hub: HubServer, answer: bytes) -> None:
    hub.listing = answer
    with pytest.raises(HubError, match="/api/models/org/tiny/revision/main: "):
        local_path("org/tiny")


def test_files_with_the_same_contents_come_once(hub: HubServer, checkpoint: Path) -> None:
    same = {"special_tokens_map.json": b"{}", "added_tokens.json": b"{}"}
    hub.add("org/tiny", {**files_of(checkpoint), **same})
    assert files_of(local_path("org/tiny")) == {**files_of(checkpoint), **same}
    assert len({"special_tokens_map.json", "added_tokens.json"}.intersection(hub.downloads())) == 1


def test_hostile_names_are_left(hub: HubServer, checkpoint: Path, tmp_path: Path) -> None:
    hub.add("org/tiny", {**files_of(checkpoint), "../../evil.json": b"", "/etc/evil": b""})
    commit = hub.add("org/tiny", checkpoint, branch="other")
    assert files_of(local_path("org/tiny")) == files_of(checkpoint)
    entry = {"rfilename": "config.json", "size": 2, "blobId": "../../../evil"}
    hub.listing = json.dumps({"sha": commit, "siblings": [entry, {"rfilename": 1}, None]}).encode()
    with pytest.raises(CheckpointError, match="has neither"):
        local_path("org/tiny")
    assert not list(tmp_path.rglob("evil*"))


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UnsupportedError) as caught:
        local_path("org/tiny")
    assert str(caught.value) == (
        "org/tiny: no such file or folder; if a model on the Hugging Face hub is meant: pip install 'quantkit[hub]'"
    )
