"""Stop strings: found wherever token boundaries are, and nothing of them is given away."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.generation.stopping import StopStrings


@settings(deadline=None)
@given(
    pieces=st.lists(st.text("abc", max_size=4), max_size=12),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_do_not_depend_on_token_boundaries(pieces: list[str], stops: list[str]) -> None:
    def cut(parts: Sequence[str]) -> tuple[str, bool]:
        finder = StopStrings(stops)
        text = "".join([*(finder.add(part) for part in parts), finder.finish()])
        return text, finder.found

    whole = "".join(pieces)
    assert cut(pieces) == cut([whole]) == cut(list(whole))
    text, found = cut(pieces)
    assert found == any(stop in whole for stop in stops)
    assert whole.startswith(text)
    assert not any(stop in text for stop in stops)
