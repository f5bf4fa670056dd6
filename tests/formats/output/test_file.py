"""Files that commands write: what stands in the way is told before, and nothing is replaced that is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantkit.errors import OptionError
from quantkit.formats.output.file import check_file


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("text.txt", "is another file of this command as well; name another picture"),
        ("link.txt", "is another file of this command as well"),
        ("deeper/../text.txt", "is another file of this command as well"),
        ("model.gguf", "is another file of this command as well"),
        ("model/config.json", "belongs to a model"),
        ("linked/config.json", "belongs to a model"),
        ("model/new.json", "belongs to a model"),
    ],
)
def test_force_replaces_nothing_that_is_read(tmp_path: Path, name: str, words: str) -> None:
    for folder in ("model", "deeper"):
        (tmp_path / folder).mkdir()
    for file in ("text.txt", "model.gguf", "model/config.json"):
        (tmp_path / file).touch()
    (tmp_path / "link.txt").symlink_to("text.txt")
    (tmp_path / "linked").symlink_to("model")
    read = (tmp_path / "text.txt", tmp_path / "model.gguf", tmp_path / "model")
    with pytest.raises(OptionError, match=words):
        check_file(tmp_path / name, what="picture", apart_from=read, force=True)
    through_a_link = (tmp_path / "link.txt", tmp_path / "model.gguf", tmp_path / "linked")
    with pytest.raises(OptionError, match=words):
        check_file(tmp_path / name, what="picture", apart_from=through_a_link, force=True)


def test_others_are_replaced_by_force(tmp_path: Path) -> None:
    (tmp_path / "text.txt").touch()
    (tmp_path / "taken.txt").touch()
    assert check_file(tmp_path / "taken.txt", apart_from=(tmp_path / "text.txt",), force=True).name == "taken.txt"
    with pytest.raises(OptionError, match="use --force"):
        check_file(tmp_path / "taken.txt", apart_from=(tmp_path / "text.txt",))
