"""compare, gate, baselines and show on run folders as neobench writes them."""

import json
from xml.etree import ElementTree

import msgspec
import pytest
from click.testing import CliRunner

from neobench.cli import main
from neobench.results.record import Outcome, RequestRecord
from neobench.results.store import Provenance, RunFolder, RunInfo, build_summary

FINGERPRINT = {"cpu": {"model": "Xeon", "available_cores": 16}, "gpus": [{"name": "H200"}]}


def write_run(path, *, slower=1.0, seed=0, failed=0, error="boom", **changes):
    """50 requests of 5 tokens each, with times drawn up from `seed` and stretched by `slower`."""
    spec = {
        "engine": {"name": "neo", "options": {}},
        "workload": {"name": "carperai"},
        "arrival": {"kind": "poisson", "rate": 100.0},
        "model": "tiny",
        "seed": seed,
    }
    info = RunInfo(
        spec=spec,
        spec_hash="abc",
        num_requests=50,
        request_rate=100.0,
        provenance=Provenance(
            kind="measured", command=["neobench", "run"], commit="c0ffee", started_at=f"2026-01-01T00:00:{seed:02}Z"
        ),
        fingerprint=FINGERPRINT,
        engine={"name": "neo"},
    )
    info = msgspec.structs.replace(info, **changes)
    folder = RunFolder.create(path)
    folder.write_run(info)
    for index in range(50):
        scheduled = 10_000_000 * index
        step = round(2_000_000 * slower * (1 + 0.002 * ((seed * 7 + index) % 5)))
        tokens = [scheduled + step * (number + 1) for number in range(5)]
        is_ok = index >= failed
        folder.append(
            RequestRecord(
                index=index,
                prompt_tokens=9,
                requested_output_tokens=5,
                output_tokens=5 if is_ok else 0,
                scheduled_ns=scheduled,
                issued_ns=scheduled + 1000,
                first_token_ns=tokens[0] if is_ok else None,
                token_ns=tokens if is_ok else [],
                ended_ns=tokens[-1],
                outcome=Outcome.OK if is_ok else Outcome.HTTP_ERROR,
                error=None if is_ok else error,
            )
        )
    folder.finish(build_summary(info, folder.columns, engine_stats={}))
    return path


@pytest.fixture
def sides(tmp_path, monkeypatch):
    """before, and after which is 5 % slower; five runs each."""
    monkeypatch.chdir(tmp_path)
    for seed in range(5):
        write_run(tmp_path / f"before/run-{seed}", seed=seed)
        write_run(tmp_path / f"after/run-{seed}", seed=seed, slower=1.05)
    return tmp_path


def neobench(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def test_gate_finds_a_regression_and_writes_what_ci_reads(sides):
    files = ["--markdown", "out/s.md", "--junit", "out/g.xml", "--github-action-benchmark", "out/a.json"]
    result = neobench("gate", "--baseline", "before", "--current", "after", *files, code=3)
    assert "regressed" in result.output
    text = (sides / "out/s.md").read_text()
    assert text.startswith("### after against before: 3 regressed")
    assert "| mean_tpot_ms | 5/5 | " in text
    suite = ElementTree.fromstring((sides / "out/g.xml").read_text())
    assert (suite.get("tests"), suite.get("failures")) == ("4", "3")
    failed = {case.get("name") for case in suite if case.find("failure") is not None}
    assert failed == {"mean_ttft_ms", "mean_tpot_ms", "mean_e2el_ms"}
    entries = json.loads((sides / "out/a.json").read_text())
    assert {entry["unit"] for entry in entries} == {"requests/s", "tokens/s"}


def test_gate_lets_equal_runs_pass_and_saves_them(sides):
    neobench("gate", "--current", "before", "--save-baseline", "main")
    (content,) = (sides / "baselines").glob("*.json")
    assert content.stat().st_size < 20_000
    saved = neobench("gate", "--baseline", "main", "--current", "before", "--json")
    document = json.loads(saved.stdout)
    assert {metric["verdict"] for metric in document["points"][0]["metrics"]} == {"pass"}
    neobench("gate", "--baseline", "main", "--current", "after", code=3)
    neobench("gate", "--baseline", "main", "--current", "after", "--metric", "mean_tpot_ms:10%")


def test_a_baseline_moves_only_when_the_gate_lets_it_and_keeps_what_it_was(sides):
    neobench("gate", "--current", "before", "--save-baseline", "main")
    first = (sides / "baselines/main.ref").read_text()
    result = neobench("gate", "--baseline", "main", "--current", "after", "--save-baseline", "main", code=3)
    assert "left as it was" in result.output
    assert (sides / "baselines/main.ref").read_text() == first
    neobench("gate", "--current", "after", "--save-baseline", "main")
    assert (sides / "baselines/main.ref").read_text() != first
    assert (sides / f"baselines/{first.strip()}.json").exists()


def test_a_baseline_that_was_edited_is_refused(sides):
    neobench("gate", "--current", "before", "--save-baseline", "main")
    (content,) = (sides / "baselines").glob("*.json")
    content.write_text(content.read_text().replace('"valid": true', '"valid": true '))
    assert "was changed after it was saved" in neobench("compare", "main", "after", code=1).output
    (sides / "baselines/main.ref").write_text("../../secret\n")
    assert "16 digits" in neobench("compare", "main", "after", code=1).output


@pytest.mark.parametrize("name", ["../main", ".main", "a/b", ""])
def test_a_baseline_stays_in_its_folder(sides, name):
    assert "letters, digits" in neobench("gate", "--current", "before", "--save-baseline", name, code=1).output
    assert not (sides / "baselines").exists()


def test_another_machine_is_incomparable_and_can_be_allowed(sides):
    other = {"cpu": {"model": "EPYC", "available_cores": 2}, "gpus": []}
    for seed in range(5):
        write_run(sides / f"elsewhere/run-{seed}", seed=seed, fingerprint=other)
    result = neobench("gate", "--baseline", "before", "--current", "elsewhere", code=1)
    assert "hardware differs, H200, Xeon, 16 cores against EPYC, 2 cores" in " ".join(result.output.split())
    allowed = neobench("gate", "--baseline", "before", "--current", "elsewhere", "--allow", "hardware")
    assert "which was allowed" in " ".join(allowed.output.split())


def test_invalid_runs_are_exit_code_4(sides):
    for seed in range(5):
        write_run(sides / f"broken/run-{seed}", seed=seed, failed=10)
    result = neobench("gate", "--baseline", "before", "--current", "broken", code=4)
    assert "10 of 50 requests failed" in " ".join(result.output.split())
    refused = neobench("gate", "--current", "broken", "--save-baseline", "main", code=1)
    assert "invalid and cannot be a baseline" in refused.output


def test_damaged_folders_are_a_line_each_and_the_rest_is_compared(sides):
    (sides / "after/run-0/run.json").write_text('{"schema": "neobench/v9", "new": 1}')
    (sides / "after/run-1/summary.json").write_text("{")
    result = neobench("compare", "before", "after")
    text = " ".join(result.output.split())
    assert "has schema 'neobench/v9'; this version reads 'neobench/v1'" in text
    assert "Not read: after/run-1/summary.json" in text
    assert "regressed" in text
    neobench("gate", "--baseline", "before", "--current", "after", code=3)
    neobench("gate", "--baseline", "after", "--current", "after", code=1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compare", "before"], "two sides or more"),
        (["compare", "befor", "after"], "'befor' is no folder"),
        (["gate", "--current", "after"], "give --baseline"),
        (["gate", "--baseline", "before", "--current", "after", "--metric", "p99_tft_ms"], "'p99_ttft_ms'"),
        (["gate", "--baseline", "before", "--current", "after", "--metric", "mean_ttft_ms:x"], "not a share"),
        (["gate", "--baseline", "before", "--current", "after", "--noise-threshold", "3"], "between 0 and 100 %"),
        (["gate", "--baseline", "before", "--current", "after", "--allow", "hardwar"], "nearest one is 'hardware'"),
        (["show", "nowhere"], "no pattern that matches"),
        (["ab", "--a", "--engine null", "--b", "--engine null"], "both sides are the same"),
        (["ab", "--a", "--engine nul", "--b", "--engine null"], "side a: "),
        (["ab", "--a", "--engine null --seed 3", "--b", "--engine null"], "set for each turn"),
        (["ab", "--a-rev", "no-such-revision", "--engine", "null"], "git"),
    ],
)
@pytest.mark.usefixtures("sides")
def test_bad_input_is_told_with_the_fix(arguments, said):
    assert said in neobench(*arguments, code=2).output


@pytest.mark.usefixtures("sides")
def test_show_tells_a_run():
    result = neobench("show", "before/run-1")
    text = " ".join(result.output.split())
    assert "Engine neo" in text
    assert "valid" in text
    assert "50 of 50 requests" in text
    assert "▁" in result.output or "█" in result.output
    assert "requests.parquet" in text


def test_show_tells_errors_without_what_they_do_to_a_terminal(sides):
    write_run(sides / "broken", failed=10, error="over[red]load\x1b[2J")
    result = neobench("show", "broken")
    assert "10 x http_error" in result.output
    assert "over[red]load" in result.output
    assert "\x1b" not in result.output
    assert "INVALID" in result.output


def test_show_tells_damage_in_a_line_and_shows_the_rest(sides):
    run = sides / "before/run-0"
    rows = (run / "requests.jsonl").read_bytes()
    (run / "requests.jsonl").write_bytes(rows.replace(b'"index":3', b'"index":"x"'))
    result = neobench("show", "before/run-0", "before/run-1", code=1)
    assert "line 4" in result.output
    assert result.output.count("output_throughput") == 4
    (run / "requests.jsonl").write_bytes(rows[:-20])
    (run / "summary.json").unlink()
    cut = neobench("show", "before/run-0", code=1)
    assert "half written" in cut.output
    assert "The run was cut short: 49 of 50" in " ".join(cut.output.split())
    (run / "run.json").write_text("[]")
    foreign = neobench("show", "before/run-0", code=1)
    assert "run.json" in foreign.output
    (sides / "before/run-1/summary.json").write_text('{"schema": "neobench/v1", "validity": 3}')
    odd = neobench("show", "before/run-1", code=1)
    assert "is not what neobench writes" in odd.output
    assert "Engine" in odd.output
