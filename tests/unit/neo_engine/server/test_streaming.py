"""Stop strings: the same answer however the text is cut into tokens, and nothing shown too early."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from neobench.neo_engine.server.streaming import StopMatcher

LETTERS = st.text("ab", max_size=12)


@given(pieces=st.lists(LETTERS, max_size=8), stop=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3))
def test_any_cut_gives_the_text_before_the_first_stop_string(pieces: list[str], stop: list[str]) -> None:
    matcher = StopMatcher(stop)
    shown = ""
    seen = ""
    for piece in pieces:
        seen += piece
        shown += matcher.push(piece)
        if matcher.matched:
            break
        assert seen.startswith(shown)
        assert not any(text in shown for text in stop)
    text = "".join(pieces)
    ends = [text.find(entry) + len(entry) for entry in stop if entry in text]
    if matcher.matched:
        # Of the stop strings complete by now, the one that begins first.
        assert shown == seen[: min(seen.find(entry) for entry in stop if entry in seen)]
        assert len(seen) >= min(ends)
    else:
        assert not ends
        assert shown + matcher.flush() == text


def test_only_what_may_begin_a_stop_string_is_held() -> None:
    matcher = StopMatcher(["stop"])
    assert matcher.push("a s") == "a "
    assert matcher.push("tep st") == "step "
    assert matcher.push("x") == "stx"
    assert matcher.push("sto") == ""
    assert matcher.push("ps") == ""
    assert matcher.matched
