"""Hardware by name: the sheets that come with neobench, and those of a user's file. Knows no torch."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import yaml

from neobench.neo_engine.config import ConfigError
from neobench.neo_engine.hardware.schema import Gpu, Host, MachineEntry, ReadRange, Sheets

_SHIPPED = ("gpus.yaml", "hosts.yaml", "machines.yaml")
_SECTIONS: Mapping[str, type[msgspec.Struct]] = {"gpus": Gpu, "hosts": Host, "machines": MachineEntry}
_DATED = ("date", "price_date")


@dataclass(frozen=True)
class Machine:
    """GPUs and a host. Each GPU has a link of its own; all share the host's cores and memory."""

    name: str
    gpu: Gpu
    host: Host
    num_gpus: int = 1
    price_usd_per_h: float | None = None
    profile_path: Path | None = None

    @property
    def link_gb_per_s(self) -> float:
        """Of one GPU, one direction, by the sheets."""
        return min(self.gpu.link_gb_per_s, self.host.link_gb_per_s)

    @property
    def peer_link_gb_per_s(self) -> float:
        """Between GPUs, one direction, by the sheets."""
        return self.gpu.peer_link_gb_per_s or self.link_gb_per_s


@dataclass(frozen=True)
class Catalogue:
    sheets: Sheets
    folders: Mapping[str, Path]
    """Of machines of a user's file: where that file lies."""

    def machine(self, name: str) -> Machine:
        """By its name, or any pair written GPU+HOST. Raises ConfigError with the nearest names for another."""
        gpu, plus, host = name.partition("+")
        if plus:
            entry = MachineEntry(gpu=gpu, host=host)
        elif name in self.sheets.machines:
            entry = self.sheets.machines[name]
        else:
            raise ConfigError(
                f"unknown machine {_with_nearest(name, self.sheets.machines)} Any GPU+HOST will do as well"
            )
        if entry.gpu not in self.sheets.gpus:
            raise ConfigError(f"machine {name}: unknown GPU {_with_nearest(entry.gpu, self.sheets.gpus)}")
        if entry.host not in self.sheets.hosts:
            raise ConfigError(f"machine {name}: unknown host {_with_nearest(entry.host, self.sheets.hosts)}")
        profile = self.folders[name] / entry.profile if entry.profile is not None else None
        return Machine(
            name=name,
            gpu=self.sheets.gpus[entry.gpu],
            host=self.sheets.hosts[entry.host],
            num_gpus=entry.num_gpus,
            price_usd_per_h=entry.price_usd_per_h,
            profile_path=profile,
        )

    def machines(self) -> list[Machine]:
        return [self.machine(name) for name in self.sheets.machines]


@cache
def shipped() -> Catalogue:
    """What comes with neobench."""
    sheets = Sheets()
    for name in _SHIPPED:
        text = resources.files("neobench.neo_engine.hardware").joinpath("data", name).read_text()
        sheets = _merged(sheets, _parsed(text, name))
    return Catalogue(sheets, {})


def extended(path: Path) -> tuple[Catalogue, list[str]]:
    """The shipped catalogue with a user's file on top, whose entries win, and the names of the file's machines.

    Raises ConfigError for a file that cannot be read, unknown keys, wrong types and machines without their parts.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read hardware file {path}: {error}") from None
    own = _parsed(text, str(path))
    catalogue = Catalogue(_merged(shipped().sheets, own), {name: path.resolve().parent for name in own.machines})
    for name in own.machines:
        catalogue.machine(name)
    return catalogue, list(own.machines)


def resolve_machine(hardware: str) -> Machine:
    """What `--hardware` says: a machine, GPU+HOST, a YAML file with one machine, or FILE.yaml:MACHINE.

    Raises ConfigError; the message has the nearest names.
    """
    file, _, name = hardware.partition(":")
    if not file.endswith((".yaml", ".yml")):
        return shipped().machine(hardware)
    catalogue, own = extended(Path(file))
    if not name and len(own) != 1:
        raise ConfigError(f"{file} has {len(own)} machines; write --hardware {file}:MACHINE ({', '.join(own) or '-'})")
    return catalogue.machine(name or own[0])


def _merged(base: Sheets, more: Sheets) -> Sheets:
    return Sheets(
        gpus={**base.gpus, **more.gpus},
        hosts={**base.hosts, **more.hosts},
        machines={**base.machines, **more.machines},
    )


def _parsed(text: str, where: str) -> Sheets:
    try:
        raw = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from None
    for problem in _unknown_keys(raw):
        raise ConfigError(f"{where}: {problem}")
    try:
        sheets = msgspec.convert(_with_dates_as_text(raw), Sheets)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from None
    for section in (sheets.gpus, sheets.hosts, sheets.machines):
        for name, entry in section.items():
            _refuse_not_positive(entry, f"{where}: {name}")
            if "+" in name or ":" in name:
                raise ConfigError(f"{where}: {name!r}: a name must have no '+' and no ':'")
    return sheets


def _unknown_keys(raw: Any) -> Iterator[str]:
    if not isinstance(raw, dict):
        yield f"must be a mapping with {', '.join(_SECTIONS)}"
        return
    for section, entries in raw.items():
        if section not in _SECTIONS:
            yield f"unknown key {_with_nearest(str(section), _SECTIONS)}"
        elif isinstance(entries, dict):
            for name, entry in entries.items():
                yield from _unknown_fields(entry, _SECTIONS[section], f"{section}.{name}")


def _unknown_fields(entry: Any, struct: type[msgspec.Struct], where: str) -> Iterator[str]:
    if not isinstance(entry, dict):
        return
    for key, value in entry.items():
        if key not in struct.__struct_fields__:
            yield f"{where}: unknown key {_with_nearest(str(key), struct.__struct_fields__)}"
        elif key == "read_gb_per_s":
            yield from _unknown_fields(value, ReadRange, f"{where}.{key}")


def _with_nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.4)
    return f"{name!r}; did you mean {' or '.join(near)}?" if near else f"{name!r}; known are {', '.join(known)}."


def _with_dates_as_text(raw: dict[str, Any]) -> dict[str, Any]:
    """YAML reads 2024-06-01 as a date and 2024-06 as text."""
    return {
        section: {
            name: {key: str(value) if key in _DATED else value for key, value in entry.items()}
            if isinstance(entry, dict)
            else entry
            for name, entry in entries.items()
        }
        if isinstance(entries, dict)
        else entries
        for section, entries in raw.items()
    }


def _refuse_not_positive(entry: msgspec.Struct, where: str) -> None:
    for field in entry.__struct_fields__:
        value = getattr(entry, field)
        if isinstance(value, int | float) and not 0 < value < float("inf"):
            raise ConfigError(f"{where}: {field} must be positive, not {value}")
