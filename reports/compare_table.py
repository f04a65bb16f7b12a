"""A comparison as a table, on the screen and in Markdown (the same cells in both), as plain data and as JUnit XML.

"Change" is current / baseline - 1 with its interval; "Visible" is the smallest change for the worse that the data
would have shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import msgspec

from neobench.results.compare import Comparison, MetricResult, PointResult, Verdict

if TYPE_CHECKING:
    from rich.table import Table

ABSENT = "-"
HEADERS = ("Point", "Metric", "Runs", "Baseline", "Current", "Change", "Interval", "Threshold", "Visible", "Verdict")
_STYLES = {Verdict.REGRESSED: "bold red", Verdict.INCOMPARABLE: "red", Verdict.IMPROVED: "green"}


def comparison_table(comparison: Comparison) -> Table:
    from rich.table import Table
    from rich.text import Text

    notes = comparison_notes(comparison)
    title = Text(f"{comparison.current} against {comparison.base}", style="bold")
    caption = Text("\n".join(notes)) if notes else None
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", padding=0)
    for header in HEADERS:
        table.add_column(header, justify="left" if header in ("Point", "Metric", "Verdict") else "right")
    for point in comparison.points:
        for index, metric in enumerate(point.metrics):
            cells = [point.title if index == 0 else "", *_cells(metric)]
            table.add_row(*map(Text, cells[:-1]), Text(cells[-1], style=_STYLES.get(metric.verdict, "")))
    return table


def comparison_markdown(comparison: Comparison) -> str:
    """For a pull request: the answer first, then the table, then what it does not say by itself."""
    rows = [[point.title, *_cells(metric)] for point in comparison.points for metric in point.metrics]
    lines = [list(HEADERS), ["---"] * len(HEADERS), *([_escaped(cell) for cell in row] for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    heading = f"### {_escaped(comparison.current)} against {_escaped(comparison.base)}: {answer(comparison)}"
    notes = [f"- {_escaped(note)}" for note in comparison_notes(comparison)]
    return "\n\n".join([heading, table, *(["\n".join(notes)] if notes else [])]) + "\n"


def answer(comparison: Comparison) -> str:
    """1 regressed, 3 pass"""
    counts = {verdict: len(comparison.with_verdict(verdict)) for verdict in (*_STYLES, *Verdict)}
    parts = [f"{count} {verdict.value}" for verdict, count in counts.items() if count]
    return ", ".join(parts) or "nothing to compare"


def comparison_notes(comparison: Comparison) -> list[str]:
    notes: list[str] = []
    for point in comparison.points:
        where = f"{point.title}: " if len(comparison.points) > 1 else ""
        notes += [f"{where}{_differs(name, *values)}." for name, values in point.differing.items()]
        notes += [f"{where}{_differs(name, *values)}, which was allowed." for name, values in point.allowed.items()]
        notes += [f"INVALID: {sentence}" for sentence in point.invalid]
        notes += [f"{where}{metric.metric}: {note}." for metric in point.metrics for note in _reasons(metric)]
        if point.could_pair and any(metric.verdict == Verdict.INCONCLUSIVE for metric in point.metrics):
            notes.append(f"{where}both sides had the same requests, run by run; --paired lets what they share cancel.")
        if not point.metrics:
            notes.append(f"{where}no metric that both sides have.")
    notes += [f"Missing on the side of {comparison.current}: {title}." for title in comparison.missing]
    notes += [f"Only on the side of {comparison.current}: {title}." for title in comparison.added]
    notes += [f"Not read: {problem}" for problem in comparison.problems]
    return list(dict.fromkeys(notes))


def comparison_document(comparison: Comparison) -> dict[str, Any]:
    """Plain JSON values: the fields of Comparison, and of each point its verdict."""
    document: dict[str, Any] = msgspec.to_builtins(comparison)
    for plain, point in zip(document["points"], comparison.points, strict=True):
        plain["verdict"] = point.verdict.value
    return {"schema": "neobench/comparison/v1", "answer": answer(comparison), **document}


def comparison_junit(comparison: Comparison) -> str:
    """A test case a point and metric: regressed is a failure, incomparable an error, inconclusive skipped."""
    suite = ElementTree.Element("testsuite", name=f"neobench: {comparison.current} against {comparison.base}")
    for point in comparison.points:
        for metric in point.metrics:
            _junit_case(suite, point, metric)
    for title in comparison.missing:
        case = ElementTree.SubElement(suite, "testcase", classname=_clean(title), name="missing")
        ElementTree.SubElement(case, "error", message="no run of this point to compare with the baseline")
    for problem in comparison.problems:
        case = ElementTree.SubElement(suite, "testcase", classname="neobench", name="not read")
        ElementTree.SubElement(case, "error", message=_clean(problem))
    cases = list(suite)
    for kind, key in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(key, str(sum(case.find(kind) is not None for case in cases)))
    suite.set("tests", str(len(cases)))
    suite.set("name", _clean(suite.get("name") or ""))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _junit_case(suite: ElementTree.Element, point: PointResult, metric: MetricResult) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=_clean(point.title), name=metric.metric)
    elements = {Verdict.REGRESSED: "failure", Verdict.INCOMPARABLE: "error", Verdict.INCONCLUSIVE: "skipped"}
    described = [f"{name} {value}" for name, value in zip(HEADERS[1:], _cells(metric), strict=True)]
    message = ", ".join([*described, *_reasons(metric), *(_differs(*item) for item in _flat(point.differing))])
    if metric.verdict in elements:
        ElementTree.SubElement(case, elements[metric.verdict], message=_clean(message))
    else:
        ElementTree.SubElement(case, "system-out").text = _clean(message)


def _flat(differing: dict[str, tuple[str, str]]) -> list[tuple[str, str, str]]:
    return [(name, *values) for name, values in differing.items()]


def _cells(metric: MetricResult) -> list[str]:
    return [
        metric.metric,
        f"{metric.base_runs}/{metric.current_runs}",
        _number(metric.base),
        _number(metric.current),
        ABSENT if metric.ratio is None else _percent(metric.ratio),
        ABSENT if metric.low is None or metric.high is None else f"{_percent(metric.low)} .. {_percent(metric.high)}",
        f"{100 * metric.threshold:.3g}%",
        ABSENT if metric.detectable is None else _share(metric.detectable),
        metric.verdict.value,
    ]


def _reasons(metric: MetricResult) -> Sequence[str]:
    """What to know, or to do, about a verdict that decides nothing."""
    if metric.note:
        return [metric.note]
    if metric.verdict != Verdict.INCONCLUSIVE or metric.detectable is None:
        return []
    if metric.detectable <= metric.threshold:
        return ["the change is close to the threshold; more repeats would tell"]
    needed = "more than 200" if metric.repeats_needed is None else f"about {metric.repeats_needed}"
    visible = f"changes below {_share(metric.detectable)} do not show at this noise"
    return [f"{visible}; a threshold of {100 * metric.threshold:.3g}% takes {needed} runs a side"]


def _differs(name: str, base: str, current: str) -> str:
    return f"{name} differs, {base} against {current}"


def _number(value: float | None) -> str:
    if value is None:
        return ABSENT
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _share(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.1 else f"{100 * share:.2g}%"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f}%"


def _escaped(cell: str) -> str:
    """Text in a Markdown table: what came from a run neither ends a cell nor becomes HTML."""
    for character, replacement in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ("|", "\\|"),
        ("\n", " "),
        ("`", "'"),
        ("[", "&#91;"),
    ):
        cell = cell.replace(character, replacement)
    return cell


def _clean(text: str) -> str:
    """Without the control characters that XML cannot carry."""
    return "".join(character if character >= " " or character in "\n\t" else " " for character in text)
