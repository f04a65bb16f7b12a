from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neobench.engines.sse import EventSplitter, StreamError, decode_event, error_message


def payloads_of(chunks: list[bytes]) -> list[bytes]:
    splitter = EventSplitter()
    return [payload for chunk in chunks for payload in splitter.feed(chunk)] + splitter.finish()


@pytest.mark.parametrize(
    ("stream", "payloads"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b": ping\n\ndata: a\n\n", [b"a"]),
        (b"event: token\nid: 7\ndata: a\n\n", [b"a"]),
        (b"data:a\ndata: b\n\n", [b"a\nb"]),
        (b"data: a", [b"a"]),
        (b"data: [DONE]\n", [b"[DONE]"]),
        (b"\n\n\n\n", []),
        (b"", []),
    ],
)
def test_events_are_found_however_the_stream_is_cut(stream: bytes, payloads: list[bytes]) -> None:
    assert payloads_of([stream]) == payloads
    assert payloads_of([stream[i : i + 1] for i in range(len(stream))]) == payloads


@given(st.lists(st.text(min_size=1), min_size=1, max_size=8), st.data(), st.sampled_from([b"\n", b"\r\n"]))
def test_any_texts_survive_any_cuts(texts: list[str], data: st.DataObject, newline: bytes) -> None:
    expected = [msgspec.json.encode({"text": text}) for text in texts]
    stream = b"".join(b"data: " + payload + newline * 2 for payload in expected)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    chunks = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert payloads_of(chunks) == expected


@pytest.mark.parametrize(
    ("payload", "carries_tokens"),
    [
        (b'{"choices":[{"index":0,"text":"hi","finish_reason":null}]}', True),
        (b'{"choices":[{"text":"","finish_reason":null}]}', True),
        (b'{"choices":[{"text":"hi","finish_reason":"length"}]}', True),
        (b'{"choices":[{"text":"","token_ids":[5],"finish_reason":"length"}]}', True),
        (b'{"choices":[{"text":"","finish_reason":"length"}]}', False),
        (b'{"choices":[],"usage":{"completion_tokens":3}}', False),
        (b'{"choices":[],"error":null}', False),
    ],
)
def test_which_events_carry_tokens(payload: bytes, carries_tokens: bool) -> None:
    assert decode_event(payload).carries_tokens is carries_tokens


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b'{"choices":[{"text":"h', "not a completion"),
        (b"<html>502</html>", "<html>502</html>"),
        (b'{"choices":7}', "not a completion"),
        (b"\xff\xfe", "not a completion"),
        (b'{"error":{"message":"out of blocks","code":500}}', "reported an error: out of blocks"),
        (b'{"error":"out of blocks"}', "reported an error: out of blocks"),
    ],
)
def test_events_that_fail_a_request(payload: bytes, message: str) -> None:
    with pytest.raises(StreamError, match=message):
        decode_event(payload)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"too long","type":"x"}}', "too long"),
        (b'{"object":"error","message":"too long"}', "too long"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b'{"detail":[{"loc":1}]}', '{"detail":[{"loc":1}]}'),
        (b"Bad Gateway\n", "Bad Gateway"),
        (b"x" * 5000, "x" * 200 + "..."),
        (b"", ""),
    ],
)
def test_the_servers_own_words_are_kept_short(body: bytes, message: str) -> None:
    assert error_message(body) == message
