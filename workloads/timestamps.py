"""When a request of a trace arrived, in whichever of the known ways the trace writes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timezone
from decimal import Decimal, InvalidOperation
from typing import Any

TIME_COLUMNS = {"timestamp": None, "timestamp_ms": 1_000_000, "timestamp_s": 1_000_000_000, "arrival_time": None}
"""Lower case -> nanoseconds of a unit; None: its other columns or its form tell."""
FORMAT_UNITS = {"input_length": 1_000_000, "request tokens": 1_000_000_000}
"""A column that tells the format -> the unit of its `timestamp`: Mooncake has milliseconds, BurstGPT seconds."""

_DATE = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?")


def timestamp_ns(row: Mapping[str, Any]) -> int | None:
    """Of a row with lower-case column names; None without a time column. Raises ValueError.

    Dates count from 1970 (UTC unless they say otherwise) and keep up to nine digits of a second.
    """
    column = next((name for name in TIME_COLUMNS if name in row), None)
    if column is None:
        return None
    value = row[column]
    if isinstance(value, str) and (date := _DATE.fullmatch(value.strip())):
        return _date_ns(date)
    unit_ns = TIME_COLUMNS[column] or next((unit for mark, unit in FORMAT_UNITS.items() if mark in row), None)
    if unit_ns is None:
        raise ValueError(
            f"the unit of {column} {value!r} is unknown: name the column timestamp_s or timestamp_ms, or write dates"
        )
    try:
        time_ns = Decimal(str(value).strip()) * unit_ns
    except InvalidOperation:
        time_ns = Decimal("nan")
    # What int64 holds: 292 years.
    if isinstance(value, bool) or not time_ns.is_finite() or not 0 <= time_ns < 2**63:
        raise ValueError(f"{column} must be a date or a number that is not negative, not {value!r}")
    return int(time_ns)


def _date_ns(date: re.Match[str]) -> int:
    seconds, fraction, zone = date.groups()
    offset = "+00:00" if zone in (None, "Z") else zone if ":" in zone else f"{zone[:3]}:{zone[3:]}"
    moment = datetime.fromisoformat(seconds + offset).astimezone(timezone.utc)
    return int(moment.timestamp()) * 1_000_000_000 + int((fraction or "0").ljust(9, "0"))
