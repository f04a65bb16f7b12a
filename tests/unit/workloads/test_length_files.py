from __future__ import annotations

from pathlib import Path

import pytest

from neobench.workloads.length_files import read_lengths, read_rows
from neobench.workloads.workload import WorkloadError


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '[{"prompt": 10, "max_tokens": 3}, {"prompt": 20, "max_tokens": 4}]'),
        ("a.jsonl", '{"input_tokens": 10, "output_tokens": 3}\n\n{"input_tokens": 20, "output_tokens": 4}\n'),
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nnow,10,3\nthen,20,4\n"),
        ("a.CSV", "\ufeffPrompt_Tokens, Output_Tokens\r\n10,3\r\n20, 4\r\n"),
    ],
)
def test_formats_and_column_names(tmp_path: Path, name: str, text: str) -> None:
    prompt_tokens, output_tokens = read_lengths(write(tmp_path, name, text))
    assert prompt_tokens.tolist() == [10, 20]
    assert output_tokens.tolist() == [3, 4]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "prompt,max_tokens\n5,6\nx,6\n5,0\n5\n", r"line 3: .*'x'\n.*line 4: max_tokens .*0.*\n.*line 5: "),
        ("a.csv", "length\n5\n", "line 2: none of the columns prompt"),
        (
            "a.json",
            '[{"prompt": 1, "max_tokens": 2}, 7, {"prompt": 2.5, "max_tokens": 2}]',
            r"entry 2: .*7\n.*entry 3: .*2.5",
        ),
        ("a.json", '[{"prompt": true, "max_tokens": 2}]', "entry 1: prompt must be a whole number"),
        ("a.json", '{"prompt": 1}', "a list of objects"),
        ("a.json", "[\n1,,\n", "line 2"),
        ("a.jsonl", '{"prompt": 1, "max_tokens": 2}\n{"prompt"\n', "line 2: not JSON: "),
        ("a.json", "[]", "holds no requests"),
        ("a.txt", "1 2", r"not \.txt"),
        ("a.csv", "prompt,max_tokens\n" + "0,0\n" * 9, r"and 4 more\n.*--skip-malformed"),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        read_lengths(write(tmp_path, name, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"nowhere\.json"):
        read_lengths(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("name", "text", "times_s"),
    [
        (
            "mooncake.jsonl",
            '{"timestamp": 0, "input_length": 6, "output_length": 5, "hash_ids": [0, 1]}\n'
            '{"timestamp": 1500, "input_length": 7, "output_length": 4, "hash_ids": [2]}\n',
            [0, 1.5],
        ),
        (
            "burstgpt.csv",
            "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
            "5,ChatGPT,6,5,11,Conversation log\n45.25,GPT-4,7,4,11,API log\n",
            [5, 45.25],
        ),
        (
            "azure.csv",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n1970-01-01 00:00:01.5000001,6,5\n1970-01-01 03:00:02+02:00,7,4\n",
            [1.5000001, 3602],
        ),
        (
            "own.json",
            '[{"timestamp_s": 0.5, "prompt": 6, "max_tokens": 5}, {"timestamp_s": 2, "prompt": 7, "max_tokens": 4}]',
            [0.5, 2],
        ),
    ],
)
def test_times_of_known_traces(tmp_path: Path, name: str, text: str, times_s: list[float]) -> None:
    path = write(tmp_path, name, text)
    rows = read_rows(path, with_times=True)
    assert rows.time_ns is not None
    assert rows.time_ns.tolist() == [round(time_s * 1e9) for time_s in times_s]
    assert rows.prompt_tokens.tolist() == [6, 7]
    assert rows.output_tokens.tolist() == [5, 4]
    assert read_rows(path).time_ns is None


@pytest.mark.parametrize(
    ("header", "time", "message"),
    [
        ("timestamp", "7", "line 2: the unit of timestamp '7' is unknown: name the column timestamp_s"),
        ("timestamp_s", "soon", "line 2: timestamp_s must be a date or a number"),
        ("timestamp_s", "-1", "not negative, not '-1'"),
        ("timestamp_s", "nan", "not 'nan'"),
        ("timestamp_s", "1e30", "not '1e30'"),
        ("timestamp_s", "2023-13-01 00:00:00", "line 2: month must be in"),
        ("timestamp_s", "", "not ''"),
    ],
)
def test_a_time_that_cannot_be_read_matters_only_where_times_are_wanted(
    tmp_path: Path, header: str, time: str, message: str
) -> None:
    path = write(tmp_path, "a.csv", f"{header},prompt,max_tokens\n{time},5,6\n")
    assert read_rows(path).prompt_tokens.tolist() == [5]
    with pytest.raises(WorkloadError, match=message):
        read_rows(path, with_times=True)


def test_malformed_rows_can_be_left_out_and_are_kept_count_of(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"prompt": 1, "max_tokens": 2}\n{"prompt"\n{"prompt": 0, "max_tokens": 2}\n')
    rows = read_rows(path, skip_malformed=True)
    assert rows.prompt_tokens.tolist() == [1]
    assert [problem.partition(":")[0] for problem in rows.malformed] == ["line 2", "line 3"]
    nothing_left = write(tmp_path, "b.jsonl", "{\n")
    with pytest.raises(WorkloadError, match="line 1: not JSON"):
        read_rows(nothing_left, skip_malformed=True)


def test_fields_beyond_the_header_are_malformed(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="line 2: more fields than the header has"):
        read_rows(write(tmp_path, "a.csv", "prompt,max_tokens\n1,2,3\n"))
