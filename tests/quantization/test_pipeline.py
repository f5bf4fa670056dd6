"""Stripes come in order, few at a time, whatever the threads and however tensors are stored."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import tiny
from quantkit import formats
from quantkit.engine.binding import bind
from quantkit.formats.source import Selection
from quantkit.quantization import encode, pipeline
from quantkit.quantization.pipeline import encoded_stripes


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Selection:
    return bind(formats.open(tiny.checkpoint(tmp_path_factory.mktemp("pipeline") / "source"))).weights


@pytest.mark.parametrize("threads", [1, 3])
def test_stripes_are_the_tensor(source: Selection, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """Of several kinds each, cut when they are read and again for the threads."""
    wanted = {name: ("f32", "int8") if len(source.spec(name).shape) == 2 else ("f32",) for name in source.names}
    whole = {(name, kind): encode.quantize(source.tensor(name), kind) for name in wanted for kind in wanted[name]}
    monkeypatch.setattr(pipeline, "READ_WEIGHTS", 64 * 40)
    monkeypatch.setattr(encode, "STRIPE_WEIGHTS", 64 * 16)
    names, parts = [], []
    for stripe in encoded_stripes(source, wanted, threads):
        parts.append(stripe.encoded)
        if stripe.last:
            names.append(stripe.name)
            for kind in wanted[stripe.name]:
                tensor, error = whole[stripe.name, kind]
                found = [part[kind] for part in parts]
                assert np.concatenate([part.data for part in found]).tobytes() == tensor.data.tobytes()
                assert sum(part.error for part in found) == pytest.approx(
                    error * sum(part.squares for part in found), rel=1e-6
                )
            parts = []
    assert names == list(wanted)


def test_little_is_read_ahead_of_what_is_written() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(4) as pool:
        results = pipeline._ahead(pool, lambda number: (number, threading.get_ident()), items(), 5)
        for number in range(100):
            found, thread = next(results)
            assert (found, thread != threading.get_ident()) == (number, True)
            assert len(taken) <= number + 6


def test_importances_belong_to_a_matrix(source: Selection) -> None:
    names = [name for name in source.names if name.endswith("_proj.weight")][:2]
    importance = np.geomspace(1, 100, source.spec(names[1]).shape[1], dtype=np.float32)
    stripes = encoded_stripes(source, {name: ["int4"] for name in names}, 1, {names[1]: importance})
    for stripe, given in zip(stripes, (None, importance), strict=True):
        wanted, _ = encode.quantize(source.tensor(stripe.name), "int4", importance=given)
        assert stripe.encoded["int4"].data.tobytes() == wanted.data.tobytes()
