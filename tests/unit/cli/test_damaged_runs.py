"""Whatever is done to the bytes of a run folder, its readers end with a line and an exit code."""

import shutil

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from neobench.cli import main
from neobench.results.record import Outcome, RequestRecord
from neobench.results.store import Provenance, RunFolder, RunInfo, build_summary

FILES = ("run.json", "summary.json", "requests.jsonl")
PIECES = (b"null", b"[]", b"{}", b'"x"', b"-1", b"1e999", b"99999999999999999999", b"true", b"\xff\x00", b"\n", b"")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    info = RunInfo(
        spec={
            "engine": {"name": "neo", "options": {}},
            "workload": {"name": "carperai"},
            "arrival": {"kind": "poisson", "rate": 10.0},
            "model": "tiny",
        },
        spec_hash="abc",
        num_requests=4,
        request_rate=10.0,
        provenance=Provenance(kind="measured", command=["neobench"], commit=None, started_at="2026-01-01T00:00:00Z"),
        fingerprint={"cpu": {"model": "Xeon", "available_cores": 2}, "gpus": []},
        engine={"name": "neo"},
        workload={"workload": {"name": "carperai"}},
    )
    folder = RunFolder.create(path)
    folder.write_run(info)
    for index in range(4):
        at = 100_000_000 * index
        folder.append(
            RequestRecord(
                index=index,
                prompt_tokens=3,
                requested_output_tokens=2,
                output_tokens=2,
                scheduled_ns=at,
                issued_ns=at,
                first_token_ns=at + 10,
                token_ns=[at + 10, at + 20],
                ended_ns=at + 20,
                outcome=Outcome.OK,
            )
        )
    folder.finish(build_summary(info, folder.columns, engine_stats={}))
    return path


def values_of(content: bytes) -> list[tuple[int, int]]:
    """Where the values of a JSON text stand, roughly: from after a colon to the next comma or end of line."""
    found = []
    for position, byte in enumerate(content):
        if byte == ord(":"):
            ends = [end for mark in (b",", b"\n", b"}") if (end := content.find(mark, position)) > 0]
            found.append((position + 1, min(ends, default=len(content))))
    return found


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=st.sampled_from(FILES), place=st.floats(0, 0.999), piece=st.sampled_from(PIECES), cut=st.booleans())
@example(file="summary.json", place=0.0, piece=b"null", cut=True)
def test_no_damage_ends_in_a_traceback(whole, tmp_path_factory, file, place, piece, cut):
    damaged = tmp_path_factory.mktemp("damaged") / "run"
    shutil.copytree(whole, damaged)
    content = (damaged / file).read_bytes()
    if cut:
        position = int(place * len(content))
        content = content[:position] + piece
    else:
        places = values_of(content)
        start, end = places[int(place * len(places))]
        content = content[:start] + piece + content[end:]
    (damaged / file).write_bytes(content)
    for command in (["show", str(damaged)], ["compare", str(whole), str(damaged)]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code in (0, 1), result.output
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
