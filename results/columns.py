"""The records of a run held by column: compact enough for 100,000 requests of 128 tokens, and ready for numpy."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from neobench.results.record import Outcome, RequestRecord

if TYPE_CHECKING:
    import pyarrow as pa

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_REQUIRED = ("index", "prompt_tokens", "requested_output_tokens", "output_tokens", "scheduled_ns")
_OPTIONAL = (
    "ready_ns",
    "issued_ns",
    "first_token_ns",
    "ended_ns",
    "http_status",
    "reported_prompt_tokens",
    "cached_tokens",
    "session",
    "turn",
    "client",
)
_ABSENT = -(2**63)
"""Stands for None inside the integer columns only; it never leaves this module."""
_OUTCOMES = tuple(Outcome)
_CODE_OF_OUTCOME = {outcome: code for code, outcome in enumerate(_OUTCOMES)}


class RecordColumns:
    """Append-only columns of RequestRecords; token instants of all requests lie in one flat array.

    The numpy arrays handed out are copies, except `token_ns`, which is a view because it is by far the largest:
    appending while one is held raises BufferError.
    """

    def __init__(self, records: Iterable[RequestRecord] = ()) -> None:
        self._integers = {name: array("q") for name in (*_REQUIRED, *_OPTIONAL)}
        self._warmup = array("b")
        self._outcome_codes = array("b")
        self._errors: list[str | None] = []
        self._retry_after_s = array("d")
        self._token_ns = array("q")
        self._token_ends = array("q")
        for record in records:
            self.append(record)

    def __len__(self) -> int:
        return len(self._warmup)

    def append(self, record: RequestRecord) -> None:
        for name in _REQUIRED:
            self._integers[name].append(getattr(record, name))
        for name in _OPTIONAL:
            value = getattr(record, name)
            self._integers[name].append(_ABSENT if value is None else value)
        self._warmup.append(record.warmup)
        self._outcome_codes.append(_CODE_OF_OUTCOME[record.outcome])
        self._errors.append(record.error)
        self._retry_after_s.append(math.nan if record.retry_after_s is None else record.retry_after_s)
        self._token_ns.extend(record.token_ns)
        self._token_ends.append(len(self._token_ns))

    def integers(self, name: str) -> Int64Array:
        """[num_requests] of a field that is never None."""
        assert name in _REQUIRED, name
        return np.array(self._integers[name], dtype=np.int64)

    def optional_integers(self, name: str, *, absent: int) -> Int64Array:
        """[num_requests] of a field that may be None, with `absent` in its place."""
        assert name in _OPTIONAL, name
        values = np.array(self._integers[name], dtype=np.int64)
        return np.where(values == _ABSENT, absent, values)

    @property
    def retry_after_s(self) -> Float64Array:
        """[num_requests] NaN where no refusal asked for a pause."""
        return np.array(self._retry_after_s)

    def instants_ms(self, name: str) -> Float64Array:
        """[num_requests] milliseconds of a `_ns` field, NaN where there is none."""
        nanoseconds = np.array(self._integers[name], dtype=np.int64)
        return np.where(nanoseconds == _ABSENT, np.nan, nanoseconds / 1e6)

    @property
    def warmup(self) -> BoolArray:
        return np.array(self._warmup, dtype=np.bool_)

    def ended_with(self, outcome: Outcome) -> BoolArray:
        """[num_requests] True where the request ended this way."""
        codes = np.array(self._outcome_codes, dtype=np.int8)
        return np.equal(codes, _CODE_OF_OUTCOME[outcome])

    @property
    def token_ns(self) -> Int64Array:
        """[num_events] instants of the streamed events, request after request."""
        return np.frombuffer(self._token_ns, dtype=np.int64)

    @property
    def token_offsets(self) -> Int64Array:
        """[num_requests + 1]; request i owns token_ns[offsets[i]:offsets[i + 1]]."""
        return np.concatenate(([0], np.array(self._token_ends, dtype=np.int64)))

    def to_arrow(self) -> pa.Table:
        """One row a request, one column a field of RequestRecord."""
        import pyarrow as pa

        columns = {}
        for name in (*_REQUIRED, *_OPTIONAL):
            values = np.array(self._integers[name], dtype=np.int64)
            columns[name] = pa.array(values, mask=values == _ABSENT)
        columns["warmup"] = pa.array(self.warmup)
        columns["outcome"] = pa.array([_OUTCOMES[code].value for code in self._outcome_codes], pa.string())
        columns["retry_after_s"] = pa.array(self.retry_after_s, mask=np.isnan(self.retry_after_s))
        columns["error"] = pa.array(self._errors, pa.string())
        columns["token_ns"] = pa.LargeListArray.from_arrays(self.token_offsets, pa.array(self.token_ns))
        return pa.table({name: columns[name] for name in RequestRecord.__struct_fields__})
