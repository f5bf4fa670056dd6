"""Pages of the KV cache: their memory, and the sequences that hold it."""

from __future__ import annotations

from itertools import pairwise

import pytest

from quantkit.engine.huge_pages import ALIGNMENT
from quantkit.engine.kv_cache import SLAB_PAGES, CacheLayer, CacheShape, PagePool, Sequence
from quantkit_kernels.attention.pages import PAGE

LAYERS = (CacheLayer(2, 12, 12), CacheLayer(1, 50, 70), CacheLayer(2, 12, 12))
SHAPES = [CacheShape(kind, LAYERS) for kind in ("int16", "int8", "f32")]


@pytest.mark.parametrize("shape", SHAPES)
def test_pages_are_apart_aligned_and_zero(shape: CacheShape) -> None:
    pool = PagePool(shape)
    pages = [pool.take() for _ in range(2 * SLAB_PAGES + 1)]
    begins = sorted(page.ctypes.data for page in pages)
    assert all(later - earlier >= shape.page_bytes for earlier, later in pairwise(begins))
    assert not any(begin % ALIGNMENT for begin in begins)
    assert all(len(page) == shape.page_bytes and page.flags.writeable and not page.any() for page in pages)


def test_a_sequence_grows_page_by_page_and_gives_back_what_it_held() -> None:
    pool = PagePool(SHAPES[0])
    with Sequence(pool, 4 * PAGE) as sequence:
        for tokens, pages in ((1, 1), (PAGE, 1), (PAGE + 1, 2)):
            sequence.reserve(tokens)
            assert sequence.nbytes == pages * pool.shape.page_bytes == pool.shape.nbytes(tokens)
        held = set(sequence._table[:2].tolist())
    again = Sequence(pool, 4 * PAGE)
    again.reserve(2 * PAGE)
    assert set(again._table[:2].tolist()) == held
