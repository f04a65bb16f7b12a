from collections.abc import Callable

import pytest

from neobench.results.record import Outcome, RequestRecord
from neobench.results.store import Provenance, RunInfo

MILLISECOND = 1_000_000

RecordFactory = Callable[..., RequestRecord]


@pytest.fixture
def make_record() -> RecordFactory:
    """A completed request, in milliseconds; every argument can be overridden."""

    def make(
        index: int = 0,
        *,
        scheduled: float = 0,
        lag: float = 0,
        tokens_at: tuple[float, ...] = (10,),
        ended: float | None = None,
        output_tokens: int | None = None,
        outcome: Outcome = Outcome.OK,
        issued: bool = True,
        **fields: object,
    ) -> RequestRecord:
        token_ns = [round(instant * MILLISECOND) for instant in tokens_at]
        end = ended if ended is not None else (tokens_at[-1] if tokens_at else scheduled + lag)
        count = len(tokens_at) if output_tokens is None else output_tokens
        return RequestRecord(
            index=index,
            prompt_tokens=fields.pop("prompt_tokens", 5),
            requested_output_tokens=count,
            output_tokens=count,
            scheduled_ns=round(scheduled * MILLISECOND),
            issued_ns=round((scheduled + lag) * MILLISECOND) if issued else None,
            first_token_ns=token_ns[0] if token_ns else None,
            token_ns=token_ns,
            ended_ns=round(end * MILLISECOND) if issued else None,
            outcome=outcome,
            **fields,
        )

    return make


@pytest.fixture
def run_info() -> RunInfo:
    return RunInfo(
        spec={"engine": {"name": "null"}, "workload": {"name": "carperai"}, "model": "tiny"},
        spec_hash="abc",
        num_requests=3,
        request_rate=10.0,
        provenance=Provenance(
            kind="measured", command=["neobench", "run"], commit=None, started_at="2026-01-01T00:00:00Z"
        ),
        fingerprint={},
        engine={"name": "test"},
    )
