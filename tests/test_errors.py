"""Notices: logged by their level, collected whatever it is."""

from __future__ import annotations

import logging
import re
import threading
from pathlib import Path

import pytest

import quantkit
from quantkit.errors import collecting_notices, notice

logger = logging.getLogger("quantkit.test")

ABOUT_THE_MACHINE = {
    *("user_cache.py", "engine/numa.py", "evaluation/benchmark.py"),
    *("formats/hub/snapshot.py", "quantization/conversion/__init__.py", "quantization/packed_copies.py"),
}
"""Modules that warn of what is no property of a model's files: folders, what cannot be kept, memory that stays where
it is or may not suffice, a hub that cannot be reached."""


def test_a_notice_is_logged_and_collected_once(caplog: pytest.LogCaptureFixture) -> None:
    notice(logger, "nobody collects")
    with collecting_notices() as outer:
        notice(logger, "a 100 % copy")
        with collecting_notices() as inner:
            notice(logger, "silent", logging.DEBUG)
        notice(logger, "a 100 % copy")
    assert (outer, inner) == (["a 100 % copy"], ["silent"])
    assert [record.message for record in caplog.records] == ["nobody collects", "a 100 % copy", "a 100 % copy"]


def test_notices_that_somebody_else_says_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with collecting_notices(silent=True) as found:
        notice(logger, "said elsewhere")
    assert (found, caplog.records) == (["said elsewhere"], [])


def test_threads_collect_their_own() -> None:
    with collecting_notices() as found:
        thread = threading.Thread(target=notice, args=(logger, "another model's"))
        thread.start()
        thread.join()
    assert found == []


def test_what_is_said_of_a_model_is_a_notice() -> None:
    """A warning that is only logged would be no error in a strict conversion."""
    root = Path(quantkit.__file__).parent
    logging_alone = re.compile(r"\b(_log|logger)\.(debug|warning|error)\(")
    found = {str(file.relative_to(root)) for file in root.rglob("*.py") if logging_alone.search(file.read_text())}
    assert found == ABOUT_THE_MACHINE
