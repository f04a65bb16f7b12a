"""Two sides measured in turns by `neobench run`: a drift of the machine falls on both alike."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from neobench.cli.points import finished_run, new_run, write_whole
from neobench.cli.run import EXIT_INVALID

_OWN = ("--output", "--json", "--dry-run", "--seed")
_SHOWN_LINES = 12
PLAN_FILE = "turns.json"
_BEFORE_A_TREE = Path(__file__).parent / "revision_path"


@dataclass(frozen=True)
class TurnSide:
    name: str
    options: tuple[str, ...]
    """Of `neobench run`."""
    checkout: Path | None = None
    """The source tree whose neobench runs; None: this one."""
    commit: str | None = None
    """Of that tree."""

    def command(self, common: Sequence[str], *more: str) -> list[str]:
        return [sys.executable, "-m", "neobench", "run", *common, *self.options, *more]

    def environment(self) -> dict[str, str]:
        environment = dict(os.environ)
        if self.checkout is not None:
            paths = [str(_BEFORE_A_TREE), str(self.checkout / "src"), os.environ.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        return environment


def check_sides(sides: Sequence[TurnSide], common: Sequence[str]) -> None:
    """Plans each side without starting an engine. Raises click.UsageError with what `neobench run` says."""
    for side in sides:
        for option in [*common, *side.options]:
            if option.partition("=")[0] in _OWN:
                raise click.UsageError(f"{option} is set for each turn; leave it out")
        _check_source(side)
        command = side.command(common, "--dry-run", "--json")
        planned = subprocess.run(command, env=side.environment(), capture_output=True, text=True, check=False)
        if planned.returncode != 0:
            said = planned.stderr.strip().splitlines() or ["it failed without a word"]
            raise click.UsageError(
                f"side {side.name}: {said[-1]} (neobench run {shlex.join([*common, *side.options])})"
            )


def _check_source(side: TurnSide) -> None:
    """An environment may prefer the neobench installed in it, and both sides would be the same code."""
    if side.checkout is None:
        return
    command = [sys.executable, "-c", "import neobench; print(neobench.__file__)"]
    loaded = subprocess.run(command, env=side.environment(), capture_output=True, text=True, check=False).stdout.strip()
    if not Path(loaded).is_relative_to(side.checkout):
        raise click.ClickException(
            f"side {side.name} would run {loaded or 'no neobench'} instead of its revision; "
            "this environment puts another neobench before PYTHONPATH"
        )


def measure_turns(sides: Sequence[TurnSide], common: Sequence[str], turns: int, seed: int, folder: Path) -> bool:
    """Each side once a turn, with the same requests in a turn and others in the next; whether all were measured.

    The side that goes first alternates. Every run starts its engine anew. What is there already is kept. Ctrl-C ends
    it after the run in flight has written what it has. Raises click.ClickException for a run that fails, and
    click.UsageError for a folder with turns of other sides.
    """
    _claim(
        folder, {"sides": {side.name: [*side.options, side.commit] for side in sides}, "common": common, "seed": seed}
    )
    for turn in range(turns):
        ordered = sides if turn % 2 == 0 else list(reversed(sides))
        for side in ordered:
            stem = folder / side.name / f"turn-{turn}"
            if finished_run(stem, "done") is not None:
                continue
            click.echo(f"Turn {turn + 1} of {turns}, {side.name}", err=True)
            if not _measure(side, common, str(seed + turn), new_run(stem)):
                return False
    return True


def _claim(folder: Path, plan: dict[str, object]) -> None:
    """What was measured with other options must not pass for a turn of these."""
    path = folder / PLAN_FILE
    text = json.dumps(plan, indent=2) + "\n"
    try:
        if path.exists() and path.read_text() != text:
            raise click.UsageError(f"{folder} has turns of other options ({path}): choose another --output")
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror}") from None


def runs_of(folder: Path, side: str) -> list[Path]:
    """The folders of the turns that this side has finished."""
    return sorted(path.parent for path in (folder / side).glob("turn-*/done"))


def _measure(side: TurnSide, common: Sequence[str], seed: str, path: Path) -> bool:
    """False when the user ended it."""
    path.mkdir(parents=True)
    log = path / "log.txt"
    command = side.command(common, "--seed", seed, "--json", "--output", str(path / "run"))
    with log.open("wb") as written:
        process = subprocess.Popen(command, env=side.environment(), stdout=subprocess.DEVNULL, stderr=written)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            # The child got the signal too and is writing what it has.
            process.wait()
            return False
    if code not in (0, EXIT_INVALID):
        said = "\n".join(log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:])
        raise click.ClickException(f"side {side.name} failed (exit code {code}); {log} ends with:\n{said}")
    (path / "done").write_text("")
    return True
