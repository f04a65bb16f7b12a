"""Option types and options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar, get_args

import click

from neobench.neo_engine.config import SM_GRAIN, USABLE_MEMORY_FRACTION, Device, EngineConfig, HostKvDType
from neobench.neo_engine.emulation import CARDS

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_Command = TypeVar("_Command", bound=Callable[..., Any])


def size(value: str) -> int:
    """A number of bytes, with a binary unit if wanted: 1073741824, 512MiB, 2G."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", value.strip().lower())
    if match is None:
        raise click.BadParameter(f"{value!r} is not a size; write bytes or e.g. 512MiB or 2GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def rates(value: str) -> tuple[float, ...]:
    """Positive request rates, comma-separated."""
    try:
        numbers = tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a rate or a list of rates, e.g. 2 or 0.5,1,2") from None
    if not all(0 < number < float("inf") for number in numbers):
        raise click.BadParameter("rates are requests per second, above 0 and finite")
    if len(set(numbers)) != len(numbers):
        raise click.BadParameter(f"{value!r} has a rate twice")
    return numbers


def names(value: str) -> tuple[str, ...]:
    """Different names, comma-separated."""
    parts = tuple(part.strip() for part in value.split(","))
    if not all(parts) or len(set(parts)) != len(parts):
        raise click.BadParameter(f"{value!r} is not a comma-separated list of different names")
    return parts


# Settings of neobench's own engine. Their names are the fields of EngineConfig; None leaves its default, so
# `show_default` is for --help alone.
_ENGINE_OPTIONS = (
    click.option(
        "--model",
        default="tiny",
        show_default=True,
        help="A named shape with random weights (see `neobench list models`) or a Hugging Face Llama folder.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "bfloat16", "float16"]),
        show_default=str(EngineConfig.dtype),
        help="Of weights and KV.",
    ),
    click.option(
        "--device",
        type=click.Choice(get_args(Device)),
        show_default=EngineConfig.device,
        help="cuda: an NVIDIA GPU. cpu: its tier is a number of blocks in RAM, computed on some cores.",
    ),
    click.option(
        "--device-blocks",
        type=click.IntRange(1),
        show_default=f"{EngineConfig.device_blocks}; on a GPU what fits",
        help="KV blocks of the device tier.",
    ),
    click.option(
        "--device-memory-fraction",
        type=click.FloatRange(0, 1, min_open=True),
        show_default=f"{USABLE_MEMORY_FRACTION:g} on a GPU",
        help="Of the GPU's memory: KV gets what weights and the largest step, tried at start, leave of it.",
    ),
    click.option(
        "--host-memory",
        type=size,
        metavar="SIZE",
        show_default=f"{EngineConfig.host_memory_bytes / 2**30:g}GiB",
        help="KV memory of the host tier.",
    ),
    click.option(
        "--host-kv-dtype",
        type=click.Choice(get_args(HostKvDType)),
        show_default=EngineConfig.host_kv_dtype,
        help="Of KV in the host tier: int8 holds and attends to twice the tokens, at an error of 1 %.",
    ),
    click.option(
        "--block-size",
        type=click.IntRange(1),
        show_default=str(EngineConfig.block_size),
        help="Tokens of a KV block.",
    ),
    click.option(
        "--max-model-tokens",
        type=click.IntRange(2),
        show_default="the model's",
        help="Longest prompt plus output.",
    ),
    click.option(
        "--max-batch-tokens",
        type=click.IntRange(1),
        show_default=str(EngineConfig.max_batch_tokens),
        help="Of one iteration: decodes of the device and prompts.",
    ),
    click.option(
        "--device-threads",
        type=click.IntRange(1),
        show_default="half",
        help="Cores of the emulated device, without a GPU.",
    ),
    click.option(
        "--host-threads",
        type=click.IntRange(1),
        show_default="half; beside a GPU all but one",
        help="Cores for attention on the host.",
    ),
    click.option(
        "--profile",
        type=click.Path(exists=True, dir_okay=False),
        help="Cost tables from `neobench profile`; default: the kept ones, or a quick measurement at start.",
    ),
    click.option(
        "--emulate",
        type=click.Choice(list(CARDS)),
        help="Restrict the GPU to stand for a smaller card: its SMs, KV blocks and CPU threads, unless given.",
    ),
    click.option(
        "--sms",
        type=click.IntRange(SM_GRAIN),
        show_default="all, or the card's",
        help=f"Restrict the GPU to this many SMs, a multiple of {SM_GRAIN}.",
    ),
)


def engine_options(command: _Command) -> _Command:
    """Add the settings of neobench's own engine, in the order that --help shows."""
    for option in reversed(_ENGINE_OPTIONS):
        command = option(command)
    return command
