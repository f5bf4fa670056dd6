"""Downloads of several files at once, each over a connection of its own: a single one rarely fills a fast line.

Progress is reported in the caller's thread, which an interrupt reaches at once. Threads that are then still waiting for
the network end when something comes or the connection times out.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue

from quantkit.formats.hub.contents import Contents, HubFile
from quantkit.formats.hub.transfer import download

CONNECTIONS = 4

_Event = tuple[HubFile, int] | BaseException | None
"""Bytes of a file have come; what a thread raised; a thread has ended."""


class _Abandoned(Exception):
    """Nobody waits for the files any more."""


def download_all(contents: Contents, files: Sequence[HubFile], blobs: Path) -> Iterator[tuple[HubFile, int]]:
    """Bring files with different contents into the cache; yields how many more bytes of which file are here.

    Raises what `transfer.download` raises. When the caller stops before the end, what has come is kept.
    """
    events: SimpleQueue[_Event] = SimpleQueue()
    waiting, abandoned = iter(files), threading.Event()
    lock = threading.Lock()

    def bring(file: HubFile) -> None:
        def advance(count: int) -> None:
            if abandoned.is_set():
                raise _Abandoned
            events.put((file, count))

        download(contents, file, blobs, advance)

    def work() -> None:
        try:
            while True:
                with lock:
                    file = next(waiting, None)
                if file is None or abandoned.is_set():
                    break
                bring(file)
            events.put(None)
        except BaseException as error:
            events.put(error)

    running = min(CONNECTIONS, len(files))
    try:
        for _ in range(running):
            threading.Thread(target=work, daemon=True).start()
        while running:
            event = events.get()
            if isinstance(event, BaseException):
                raise event
            if event is None:
                running -= 1
            else:
                yield event
    finally:
        abandoned.set()
