"""What the neighbours need of numba although numba keeps it to itself: asked for by name before it is relied upon."""

from __future__ import annotations

from typing import Any

import numba


def require(owner: Any, *names: str) -> None:
    """Raise `ImportError` for the first of `names` that `owner`, a class or object of numba's, does not have."""
    for name in names:
        if not hasattr(owner, name):
            kind = owner if isinstance(owner, type) else type(owner)
            raise ImportError(f"numba {numba.__version__} has no {kind.__name__}.{name}")
