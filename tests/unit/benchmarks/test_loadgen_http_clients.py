"""HTTP clients compared: each really streams from the server, and a stream that is cut short is no result."""

from __future__ import annotations

import pytest

from benchmarks.loadgen.http_clients import Answer, closed_loop, format_table, in_a_process_of_its_own, measure


@pytest.mark.parametrize("client", ["neobench", "aiohttp"])
async def test_streams_are_read_to_their_end(client: str) -> None:
    row = await measure(client, tokens=4, concurrency=3, seconds=0.3)
    assert row["requests"] > 10
    assert row["tokens_per_s"] == pytest.approx(4 * row["requests_per_s"])
    assert 0 < row["cpu_us_per_request"] <= 1.2e6 / row["requests_per_s"]
    assert format_table([row]).splitlines()[-1].startswith(f"| 4 | {client} | {row['requests_per_s']:,.0f} |")


def test_each_row_is_measured_in_a_process_of_its_own() -> None:
    row = in_a_process_of_its_own("neobench", 1, 2, 0.2)
    assert (row["client"], row["tokens"], row["concurrency"]) == ("neobench", 1, 2)


async def test_a_stream_with_too_few_tokens_is_an_error() -> None:
    async def exchange(body: bytes, answer: Answer) -> None:
        assert b'"max_tokens":3' in body
        answer.feed(b'data: {"choices":[{"text":"x"}]}\n\ndata: [DONE]\n\n')

    with pytest.raises(RuntimeError, match="1 tokens came, not 3"):
        await closed_loop(exchange, tokens=3, concurrency=1, seconds=0.1)
