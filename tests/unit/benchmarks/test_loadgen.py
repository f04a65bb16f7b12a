"""Load generators compared: reading their files, the truth from the server's log, a row, and the tables of rows."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.loadgen import run
from benchmarks.loadgen.loads import Load, Report
from benchmarks.loadgen.measure import Delays, Ended, build_row, measure, run_command
from benchmarks.loadgen.report import comparison_figure, format_tables, median_rows, write_tables
from benchmarks.loadgen.tools import (
    GuideLlm,
    MissingToolError,
    Neobench,
    Tool,
    UnreadableError,
    VllmBench,
    installed_version,
)
from benchmarks.loadgen.truth import measured_requests, true_figures
from neobench.engines.instant_log import Instants, read_instants
from neobench.harness.runner import RunContext

DATA = Path(__file__).parent / "data" / "loadgen"
RECORDED = Load(arrival="constant", rate=10, num_requests=8, output_tokens=4)
TOOLS: dict[str, Tool] = {
    "neobench": Neobench(),
    "vllm": VllmBench("python", Path("tokenizer")),
    "guidellm": GuideLlm("python", Path("tokenizer")),
}
MS = 1_000_000


def served(received_ms: float, *tokens_ms: float, completed: bool = True) -> Instants:
    token_ns = [round(instant * MS) for instant in tokens_ms]
    received_ns = round(received_ms * MS)
    return Instants(
        request_id=None,
        prompt_start="[1,2",
        prompt_tokens=2,
        output_tokens=len(token_ns),
        received_ns=received_ns,
        began_ns=received_ns,
        last_due_ns=token_ns[-1] if token_ns else received_ns,
        token_ns=token_ns,
        completed=completed,
    )


def report(**figures: Any) -> Report:
    missing = {name: None for name in Report.__dataclass_fields__ if name.endswith("_ms")}
    known = {"completed": 2, "failed": 0, "requests_per_s": 10.0, "ttft_from": "sent", "objections": ()}
    return Report(**{**missing, **known, **figures})


def row(tool: str = "neobench", *, failure: str | None = None, **figures: Any) -> dict[str, Any]:
    ended = Ended(status=0, started_ns=-500 * MS, wall_s=3.0, cpu_s=1.0)
    requests = [served(0, 52, 57), served(100, 150, 156)]
    load = Load(arrival="poisson", rate=10, num_requests=2, output_tokens=2)
    built = build_row(load, [] if failure else requests, None if failure else report(**figures), ended)
    return {"tool": tool, **built, "failure": failure, "others_cpu_share": 0.125}


# --- what the tools write


@pytest.mark.parametrize("name", TOOLS)
def test_a_recorded_result_is_read_and_agrees_with_the_servers_log(name: str) -> None:
    read = TOOLS[name].read(DATA / name)
    assert (read.completed, read.failed, read.lag_p99_ms is None) == (8, 0, name != "neobench")
    ended = Ended(status=0, started_ns=0, wall_s=1.0, cpu_s=1.0)
    built = build_row(RECORDED, read_instants(DATA / name / "instants.jsonl"), read, ended)
    assert built["true"]["requests"] == built["true"]["completed"] == 8
    assert built["delivered_ratio"] == pytest.approx(1, abs=0.01)
    assert built["true"]["ttft_p50_ms"] == pytest.approx(50, abs=0.5)
    # No client can have a token before the server writes it.
    assert 0 < built["error"]["sent_ttft_p50_ms"] < 5
    assert abs(built["error"]["tpot_p50_ms"]) < 0.5
    assert (built["error"]["itl_p50_ms"] is None) == (name == "guidellm")


def test_each_figure_of_a_tool_is_the_one_that_its_name_says() -> None:
    vllm = TOOLS["vllm"].read(DATA / "vllm")
    assert (vllm.ttft_p50_ms, vllm.ttft_p99_ms) == (52.27921950063319, 52.8274003622937)
    assert (vllm.tpot_p50_ms, vllm.itl_p99_ms) == (4.9747911652957555, 5.339906627777964)
    assert vllm.requests_per_s == 9.2066887044064
    ours = TOOLS["neobench"].read(DATA / "neobench")
    assert ours.ttft_p50_ms is not None
    assert ours.sent_ttft_p50_ms is not None
    assert ours.ttft_from == "scheduled"
    assert ours.ttft_p50_ms > ours.sent_ttft_p50_ms
    guidellm = TOOLS["guidellm"].read(DATA / "guidellm")
    assert guidellm.ttft_p50_ms is not None
    assert guidellm.ttft_p50_ms > 50
    assert guidellm.objections[0].startswith("mean generation delay was")


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_that_left_nothing_is_told_so(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match=r"summary\.json|result\.json"):
        TOOLS[name].read(tmp_path)


def test_a_figure_that_is_not_there_is_named(tmp_path: Path) -> None:
    document = (DATA / "vllm" / "result.json").read_text().replace("p99_itl_ms", "p98_itl_ms")
    (tmp_path / "result.json").write_text(document)
    with pytest.raises(UnreadableError, match="its result has no p99_itl_ms"):
        TOOLS["vllm"].read(tmp_path)


def test_a_tool_that_is_not_installed_says_how_to_install_it() -> None:
    with pytest.raises(MissingToolError, match="has no no-such-tool; to install it: pip install no-such-tool"):
        installed_version(sys.executable, "no-such-tool")
    with pytest.raises(MissingToolError, match="/no/python does not run"):
        installed_version("/no/python", "neobench")


# --- the truth


def test_true_figures_by_hand() -> None:
    requests = [served(0, 50, 55, 65), served(100, 151, 156, 166), served(300, 352, 362, 372)]
    true = true_figures(requests)
    assert (true["requests"], true["completed"]) == (3, 3)
    assert true["delivered_rate"] == pytest.approx(2 / 0.3)
    # Gaps of 100 and 200 ms: a mean of 150 and a deviation of 50.
    assert true["gap_cv"] == pytest.approx(1 / 3)
    assert (true["ttft_p50_ms"], true["ttft_p99_ms"]) == (pytest.approx(51), pytest.approx(51.98))
    assert true["tpot_p50_ms"] == pytest.approx(7.5)
    assert true["itl_p50_ms"] == pytest.approx(10)
    assert true["requests_per_s"] == pytest.approx(3 / 0.372)
    assert true["tokens_per_s"] == pytest.approx(9 / 0.372)


def test_what_was_not_answered_counts_as_an_arrival_alone() -> None:
    true = true_figures([served(0, 50), served(100, completed=False), served(200, 250)])
    assert (true["requests"], true["completed"]) == (3, 2)
    assert true["delivered_rate"] == pytest.approx(10)
    assert true["requests_per_s"] == pytest.approx(2 / 0.25)
    assert true["itl_p50_ms"] is None


@pytest.mark.parametrize("requests", [[], [served(5, 6)], [served(5, 6), served(5, 7)]])
def test_without_two_instants_there_is_no_rate(requests: list[Instants]) -> None:
    assert true_figures(requests)["delivered_rate"] is None


def test_requests_that_only_try_the_server_are_left_out() -> None:
    requests = [served(30, 31), served(0, 1), served(20, 21)]
    assert [request.received_ns // MS for request in measured_requests(requests, 2)] == [20, 30]


def test_a_row_is_the_report_less_the_truth() -> None:
    built = row(ttft_p50_ms=56.0, sent_ttft_p50_ms=53.0, tpot_p50_ms=5.25)
    assert built["true"]["ttft_p50_ms"] == pytest.approx(51)
    assert built["error"]["ttft_p50_ms"] == pytest.approx(5)
    assert built["error"]["sent_ttft_p50_ms"] == pytest.approx(2)
    assert built["error"]["tpot_p50_ms"] == pytest.approx(-0.25)
    assert built["error"]["itl_p99_ms"] is None
    assert (built["delivered_ratio"], built["start_up_s"]) == (pytest.approx(1), pytest.approx(0.5))


# --- running


@dataclass(frozen=True)
class Program:
    """A tool that is a few lines of Python."""

    program: str
    name: str = "program"
    good_statuses: tuple[int, ...] = (0,)

    def version(self) -> str:
        return "1"

    def command(self, load: Load, url: str, folder: Path) -> list[str]:  # noqa: ARG002
        return [sys.executable, "-c", self.program, url]

    def environment(self) -> Mapping[str, str]:
        return {"SAID": "by the environment"}

    def read(self, folder: Path) -> Report:  # noqa: ARG002
        raise UnreadableError("it measures nothing")


def test_neobench_itself_is_measured(tmp_path: Path) -> None:
    load = Load(arrival="poisson", rate=50, num_requests=25, output_tokens=4)
    built = measure(Neobench(), load, delays=Delays(20, 2), folder=tmp_path / "run", limit_s=60)
    assert built["failure"] is None
    assert built["reported"]["completed"] == built["true"]["completed"] == 25
    assert built["true"]["ttft_p50_ms"] >= 20
    assert built["error"]["sent_ttft_p50_ms"] > 0
    assert 0 < built["start_up_s"] < built["wall_s"]
    assert built["cpu_s"] > 0
    assert 0 <= built["others_cpu_share"] <= 1


@pytest.mark.parametrize(
    ("program", "limit_s", "problem"),
    [
        ("import os; print(os.environ['SAID']); raise SystemExit(3)", 30, "exit status 3"),
        ("import os, time; print(os.environ['SAID'], flush=True); time.sleep(60)", 1, "stopped after 1 s"),
        ("import os; print(os.environ['SAID'])", 30, "it measures nothing"),
    ],
)
def test_a_tool_that_fails_leaves_a_row_with_the_end_of_its_output(
    tmp_path: Path, program: str, limit_s: float, problem: str
) -> None:
    built = measure(Program(program), RECORDED, delays=Delays(), folder=tmp_path / "run", limit_s=limit_s)
    assert built["failure"] == f"{problem}. The end of its output:\nby the environment"
    assert (built["true"]["requests"], built["reported"], built["start_up_s"]) == (0, None, None)


def test_nothing_that_a_command_started_outlives_it(tmp_path: Path) -> None:
    child = "import time; time.sleep(60)"
    program = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid)"
    log = tmp_path / "log"
    run_command([sys.executable, "-c", program], log, {}, limit_s=30)
    status = Path("/proc", log.read_text().strip(), "status")
    deadline = time.monotonic() + 10
    while status.exists() and "State:\tZ" not in status.read_text():
        assert time.monotonic() < deadline, "it runs on"
        time.sleep(0.02)


def test_the_other_tools_go_on_when_one_fails_and_the_table_keeps_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = run.Options(
        rates=(10.0,),
        arrivals=("constant",),
        seconds=0.2,
        repeats=1,
        delays=Delays(1, 0),
        output=tmp_path / "table.json",
        tools=(Program("raise SystemExit('no')"), Program("print('no')", name="other"), VllmBench("/no", tmp_path)),
        context=RunContext.capture(["run.py"]),
    )
    rows, is_complete = run.run_all(options, tmp_path)
    assert is_complete
    assert [(row["tool"], row["load"]) for row in rows[:2]] == [("program", "constant-10"), ("other", "constant-10")]
    document = msgspec.json.decode((tmp_path / "table.json").read_bytes())
    assert document["rows"] == msgspec.to_builtins(rows)
    assert document["versions"]["other"] == "1"
    assert document["rows"][0]["environment"] == {"SAID": "by the environment"}
    said = capsys.readouterr().out
    assert "vllm bench serve is left out: /no does not run" in said
    assert "[2/6] other (1), constant-10 ... FAILED: it measures nothing" in said
    assert "| constant 10 | program (failed) |" in format_tables(rows)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--arrivals", "poison"], "unknown arrival 'poison'; there are poisson, constant"),
        (["--rates", "10,fast"], "--rates '10,fast' are no numbers"),
        (["--seconds", "0"], "must be above 0"),
    ],
)
def test_bad_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    with pytest.raises(SystemExit):
        run.parse([*arguments, "-o", str(tmp_path / "table.json")], tmp_path)
    assert problem in capsys.readouterr().err


# --- tables and figure


def test_repeats_are_shown_by_their_median_and_failures_are_counted() -> None:
    rows = [row(ttft_p50_ms=ms) for ms in (50.0, 90.0, 60.0)]
    (median,) = median_rows([*rows, row(failure="exit status 1. It said nothing")])
    assert median["reported"]["ttft_p50_ms"] == 60
    assert (median["repeats"], median["failures"]) == (4, 1)
    unanswered = [{**each, "true": true_figures([served(0, completed=False)])} for each in rows]
    assert median_rows([rows[0], *unanswered])[0]["true"]["requests_per_s"] == rows[0]["true"]["requests_per_s"]
    assert "neobench (1 of 4 failed)" in format_tables([*rows, row(failure="exit status 1")])


def test_what_a_tool_says_against_itself_is_told() -> None:
    text = format_tables([row(objections=("it was\nlate",)), row("other", failure="exit status 1. The end:\nlog")])
    assert "- neobench, poisson-10: it was late" in text
    assert "- other, poisson-10: failed: exit status 1. The end:" in text
    assert "70.7 % at 10" in text
    assert "other programs took 12 % of the machine's CPU" in text


def test_the_tables_go_between_their_marks_and_leave_the_rest(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    write_tables([row()], readme)
    readme.write_text("Before.\n" + readme.read_text() + "After.\n")
    write_tables([row("other")], readme)
    text = readme.read_text()
    assert text.startswith("Before.\n# Load generators compared")
    assert text.endswith("After.\n")
    assert "| poisson 10 | other |" in text
    assert "neobench" not in text.split("tables below", 1)[1].replace("benchmarks/loadgen", "")


def test_the_figure_has_a_line_for_each_tool_and_leaves_out_what_failed() -> None:
    figure = comparison_figure([row(sent_ttft_p50_ms=53.0), row("other", failure="exit status 1")])
    axes: list[Any] = figure.axes
    left, right = axes
    assert {text.get_text() for text in left.get_legend().get_texts()} >= {"neobench", "other"}
    drawn = [line.get_ydata()[0] for line in right.get_lines() if len(line.get_ydata())]
    assert drawn == [pytest.approx(2)]


def test_a_closed_loop_says_how_many_are_in_flight() -> None:
    load = replace(RECORDED, arrival="closed", rate=None, concurrency=4)
    for tool, flag in ((TOOLS["neobench"], "--concurrency 4"), (TOOLS["vllm"], "--max-concurrency 4")):
        assert flag in " ".join(tool.command(load, "http://here", Path("folder")))
    assert "kind=concurrent,streams=4" in TOOLS["guidellm"].command(load, "http://here", Path("folder"))


def test_guidellm_may_have_fewer_processes() -> None:
    tool = GuideLlm("python", Path("tokenizer"), 2, name="GuideLLM, 2 processes")
    assert tool.environment()["GUIDELLM__MAX_WORKER_PROCESSES"] == "2"
    assert "GUIDELLM__MAX_WORKER_PROCESSES" not in TOOLS["guidellm"].environment()
