"""Requests to the hub, through the library huggingface_hub: its session, headers with the token, endpoint, timeouts.

Whatever fails is a `HubError` of one line that names the model, the cause and the remedy. What is kept on this machine
is `cache.py`'s and `transfer.py`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from quantkit.errors import UnsupportedError
from quantkit.formats.hub.contents import Contents, HubFile
from quantkit.formats.hub.names import HubError, HubName
from quantkit.formats.json_files import parse_object

COMMIT = re.compile(r"[0-9a-f]{40}")
NO_PATH = "no such file or folder, and "
_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class Unreachable(HubError):
    """The hub cannot be reached now, but perhaps a moment later."""


def constants(name: HubName) -> Any:
    """Return huggingface_hub's settings, made of environment variables; raises where the library is missing."""
    try:
        from huggingface_hub import constants
    except ImportError:
        raise UnsupportedError(
            f"{name}: no such file or folder; if a model on the Hugging Face hub is meant: pip install 'quantkit[hub]'"
        ) from None
    return constants


def list_contents(name: HubName, timeout: float, *, known: bool) -> Contents:
    """Ask the hub what a repository holds; this is one request.

    Where nothing is `known` of it on this machine, what was meant may have been a path, and errors say so.

    Raises
    ------
    HubError
        There is no such repository or revision, or the hub cannot be reached within `timeout` seconds, or must not be
        (HF_HUB_OFFLINE).
    """
    settings = constants(name)
    if settings.HF_HUB_OFFLINE:
        raise HubError(f"{name}: {'' if known else NO_PATH}the hub is not asked: HF_HUB_OFFLINE is set")
    url = f"{settings.ENDPOINT}/api/models/{name.repo}/revision/{quote(name.revision, safe='')}"
    with explained(name, "" if known else NO_PATH):
        from huggingface_hub.utils import get_session, hf_raise_for_status

        response = get_session().get(url, headers=_headers(settings), params={"blobs": "true"}, timeout=timeout)
        hf_raise_for_status(response)
    found = parse_object(response.content, url, HubError)
    match found:
        case {"sha": str(commit), "siblings": list(entries)} if COMMIT.fullmatch(commit):
            files = [file for file in map(_file, entries) if file is not None]
            return Contents(name, commit, {file.name: file for file in files})
    raise HubError(f"{url}: does not answer as a hub does")


def _file(entry: Any) -> HubFile | None:
    """Read an entry of the hub's list; None for what is no file with a name, a size and a checksum."""
    match entry:
        case {"rfilename": str(name), "lfs": {"sha256": str(etag), "size": int(size)}}:
            pass
        case {"rfilename": str(name), "size": int(size), "blobId": str(etag)}:
            pass
        case _:
            return None
    path = PurePosixPath(name)
    # These become names of files here.
    sound = not path.is_absolute() and ".." not in path.parts and "\0" not in name and _ETAG.fullmatch(etag)
    return HubFile(name, size, etag) if sound and size >= 0 else None


@contextmanager
def receive(contents: Contents, file: HubFile, begin: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Ask for the bytes of a file from `begin` on; yields where they really begin, which may be 0, and the bytes.

    Raises what the session raises; `explained` makes a `HubError` of it.
    """
    settings = constants(contents.name)
    from huggingface_hub.utils import get_session, hf_raise_for_status

    url = f"{settings.ENDPOINT}/{contents.name.repo}/resolve/{contents.commit}/{quote(file.name)}"
    headers = {**_headers(settings), "Accept-Encoding": "identity"}
    if begin:
        headers["Range"] = f"bytes={begin}-"
    with get_session().stream("GET", url, headers=headers, timeout=settings.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        hf_raise_for_status(response)
        yield begin if response.status_code == 206 else 0, response.iter_bytes()  # as they come


def _headers(settings: Any) -> dict[str, str]:
    """Return headers that name the library, and the user by the token, if there is one.

    Those that huggingface_hub would make cost a further request, about the programs that may have started it.
    """
    from importlib.metadata import version

    from huggingface_hub import get_token

    token = None if settings.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    agent = {"User-Agent": f"quantkit/{version('quantkit')}"}
    return agent | {"Authorization": f"Bearer {token}"} if token else agent


@contextmanager
def explained(name: HubName, before: str = "") -> Iterator[None]:
    """Turn what requests raise into a `HubError` that says what to do; `before` begins the sentence."""
    from huggingface_hub import errors

    endpoint = constants(name).ENDPOINT
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        yield
    except errors.GatedRepoError as cause:
        raise HubError(
            f"{name}: the model is gated: accept its terms at {endpoint}/{name.repo}, and {log_in}"
        ) from cause
    except errors.RepositoryNotFoundError as cause:
        raise HubError(f"{name}: {before}there is no such model on {endpoint}; if it is private: {log_in}") from cause
    except errors.RevisionNotFoundError as cause:
        raise HubError(f"{name}: the repository has no revision {name.revision!r}") from cause
    except errors.HfHubHTTPError as cause:
        status = cause.response.status_code
        hint = f"; {log_in}" if status in (401, 403) else ""
        error = Unreachable if status in (408, 429) or status >= 500 else HubError
        raise error(f"{name}: {before}{endpoint} answers {status} {cause.response.reason_phrase}{hint}") from cause
    except (errors.HfHubHTTPError.__bases__[0], errors.OfflineModeIsEnabled) as cause:  # httpx's base class of all
        what = f"{type(cause).__name__}: {cause}".rstrip(": ")
        raise Unreachable(f"{name}: {before}{endpoint} cannot be reached ({what})") from cause
