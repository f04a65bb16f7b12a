from __future__ import annotations

from pathlib import Path

import pytest

from neobench.workloads.length_files import read_lengths
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
        ("a.jsonl", '{"prompt": 1, "max_tokens": 2}\n{"prompt"\n', "line 2: not JSON"),
        ("a.json", "[]", "holds no requests"),
        ("a.txt", "1 2", r"not \.txt"),
        ("a.csv", "prompt,max_tokens\n" + "0,0\n" * 9, "and 4 more"),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        read_lengths(write(tmp_path, name, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"nowhere\.json"):
        read_lengths(tmp_path / "nowhere.json")
