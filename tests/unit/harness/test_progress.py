import io

import pytest

from neobench.harness import progress
from neobench.harness.flight import Counts
from neobench.harness.progress import progress_display


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def counts():
    counts = Counts(total=10)
    counts.issued, counts.completed, counts.failed, counts.tokens = 6, 3, 1, 60
    return counts


def test_plain_lines_come_now_and_then_and_at_the_end(counts, monkeypatch):
    now_s = 100.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now_s)
    stream = io.StringIO()
    with progress_display("null 4/s", expected_s=8, stream=stream) as show:
        now_s = 102.0
        show(counts)
        assert stream.getvalue() == ""
        now_s = 106.0
        show(counts)
        assert stream.getvalue() == "null 4/s: issued 6/10 · done 3 · failed 1 · 10 tok/s · 6 s · ~2 s left\n"
        now_s = 110.0
        counts.completed = 9
        show(counts)
    assert stream.getvalue().splitlines()[-1].endswith("done 9 · failed 1 · 6 tok/s · 10 s")


def test_time_left_follows_the_schedule_and_then_the_completions():
    assert progress._left_s(1, 10, 4.0, 6.0) == 2.0
    assert progress._left_s(5, 10, 8.0, 6.0) == 8.0
    assert progress._left_s(0, 10, 8.0, None) is None


def test_a_terminal_gets_a_live_line(counts):
    stream = Terminal()
    with progress_display("null", stream=stream) as show:
        show(counts)
    assert "issued 6/10" in stream.getvalue()


def test_quiet_shows_nothing(counts):
    stream = Terminal()
    with progress_display("null", quiet=True, stream=stream) as show:
        show(counts)
    assert stream.getvalue() == ""
