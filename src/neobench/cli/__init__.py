"""The command line: the composition root, which alone knows everybody. Each command is imported when it is called."""

from __future__ import annotations

import difflib
import importlib

import click

from neobench import __version__

_COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("neobench.cli.run:run", "Measure engines under a workload at one or several request rates."),
    "search": ("neobench.cli.search:search", "Find the highest request rate that meets service level objectives."),
    "sweep": ("neobench.cli.sweep:sweep", "Measure every point of a YAML file: engines, workloads, rates, settings."),
    "selftest": ("neobench.cli.selftest:selftest", "Find what this machine's load generator can do."),
    "show": ("neobench.cli.show:show", "Print runs as a person reads them, with sparklines."),
    "compare": ("neobench.cli.compare:compare", "Compare repeated runs: pass, regressed, improved or inconclusive."),
    "gate": ("neobench.cli.gate:gate", "Judge repeated runs against a baseline, with exit codes for CI."),
    "ab": ("neobench.cli.ab:ab", "Measure two settings or git revisions in turns, and compare them in pairs."),
    "bisect-noise": (
        "neobench.cli.bisect_noise:bisect_noise",
        "Measure equal runs, and recommend thresholds and repeats for this machine.",
    ),
    "reproduce": ("neobench.cli.reproduce:reproduce", "Redraw the NEO paper's figures by modelled runs."),
    "serve": ("neobench.cli.serve:serve", "Start neobench's own engine as an OpenAI-compatible server."),
    "profile": ("neobench.cli.profile:profile", "Measure this machine's cost tables for a model."),
    "bench-cpu": ("neobench.cli.bench_cpu:bench_cpu", "Measure CPU attention against this machine's read bandwidth."),
    "export": ("neobench.cli.export:export", "Write runs in the formats of other tools."),
    "convert": ("neobench.cli.convert:convert", "Make run folders of vLLM's and GuideLLM's result files."),
    "plot": ("neobench.cli.plot:plot", "Put runs into one table and one load-latency figure."),
    "list": ("neobench.cli.listing:list_", "List the engines, workloads, models or machines that have a name."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in _COMMANDS:
            near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        # click would import every command for its help line; --help must answer at once.
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, help_line) in _COMMANDS.items()])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 ok, 1 error, 2 usage, 3 regression, 4 the run is invalid (the reasons are printed).",
)
@click.version_option(__version__, prog_name="neobench")
def main() -> None:
    """Measure LLM serving engines with numbers you can defend.

    \b
    neobench run --engine neo --workload carperai
    neobench run --engine neo,gpu_only --workload carperai --rate 2,4,8
    neobench run --help
    """
