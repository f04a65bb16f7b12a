"""Workloads counted in datasets, through the real `datasets` and `tokenizers` on local files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neobench.harness.spec import Seeds, SessionSpec
from neobench.workloads import carperai
from neobench.workloads.prompts import Streams, build_requests
from neobench.workloads.registry import create
from neobench.workloads.workload import Conversational, Workload, WorkloadError


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """A folder with a tokenizer of one token a word."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    made = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    (tmp_path / "model").mkdir()
    made.save(str(tmp_path / "model" / "tokenizer.json"))
    return str(tmp_path / "model")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def drawn_pairs(workload: Workload, num_requests: int) -> list[tuple[int, int]]:
    prompt_tokens, output_tokens = workload.draw_lengths(num_requests, np.random.default_rng(0))
    return sorted(zip(prompt_tokens.tolist(), output_tokens.tolist(), strict=True))


def test_columns_of_texts_are_counted_and_columns_of_counts_taken(tmp_path: Path, tokenizer: str) -> None:
    rows = [
        {"question": "why " * n, "answer": "so " * (2 * n), "answer_tokens": 7 * n, "score": 0.5} for n in (1, 2, 3)
    ]
    path = write_lines(tmp_path / "qa" / "train.jsonl", rows)
    columns = {"prompt_column": "question", "output_column": "answer", "tokenizer": tokenizer}
    for dataset in (path, path.parent):
        workload = create(f"hf:{dataset}", columns)
        assert drawn_pairs(workload, 3) == [(1, 2), (2, 4), (3, 6)]
        assert workload.describe()["columns"] == {"question": "text", "answer": "text"}
        assert workload.describe()["dataset_rows"] == 3
    counted = create(f"hf:{path}", {**columns, "output_column": "answer_tokens"})
    assert drawn_pairs(counted, 6) == [(1, 7), (1, 7), (2, 14), (2, 14), (3, 21), (3, 21)]
    both = create(f"hf:{path}", {"prompt_column": "answer_tokens", "output_column": "answer_tokens"})
    assert drawn_pairs(both, 3) == [(7, 7), (14, 14), (21, 21)]


def test_a_split_can_be_chosen(tmp_path: Path) -> None:
    write_lines(tmp_path / "d" / "train.jsonl", [{"a": 1, "b": 2}])
    write_lines(tmp_path / "d" / "test.jsonl", [{"a": 3, "b": 4}])
    columns = {"prompt_column": "a", "output_column": "b"}
    assert drawn_pairs(create(f"hf:{tmp_path / 'd'}", columns), 1) == [(1, 2)]
    assert drawn_pairs(create(f"hf:{tmp_path / 'd'}", {**columns, "split": "test"}), 1) == [(3, 4)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs the option prompt_column and output_column"),
        ({"prompt_column": "a", "output_columm": "b"}, "did you mean 'output_column'"),
        ({"prompt_column": "c", "output_column": "b"}, "has no column 'c'; it has a, b, text, share"),
        ({"prompt_column": "share", "output_column": "b"}, "column 'share' of .* is float64; texts or whole numbers"),
        ({"prompt_column": "text", "output_column": "b"}, "depend on the tokenizer"),
        ({"prompt_column": "a", "output_column": "b", "split": "tset"}, "(?s)cannot load split tset of .*tset"),
    ],
)
def test_what_a_dataset_lacks_is_said(tmp_path: Path, options: dict[str, str], message: str) -> None:
    write_lines(tmp_path / "d" / "train.jsonl", [{"a": 1, "b": 2, "text": "x", "share": 0.5}])
    with pytest.raises(WorkloadError, match=message):
        create(f"hf:{tmp_path / 'd'}", options)


def test_a_count_below_one_is_named_with_its_row(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"a": 1, "b": 0}])
    workload = create(f"hf:{path}", {"prompt_column": "a", "output_column": "b"})
    with pytest.raises(WorkloadError, match="row 0: b must be a text or at least 1 token, not 0"):
        drawn_pairs(workload, 1)


def turns(*texts: str) -> dict[str, Any]:
    return {"id": "x", "conversations": [{"from": "human", "value": text} for text in texts]}


def test_the_first_question_and_answer_of_a_conversation_count(tmp_path: Path, tokenizer: str) -> None:
    path = tmp_path / "sharegpt.json"
    path.write_text(
        json.dumps([turns("a b c", "d", "more", "words"), turns("only a question"), turns("a", "b c"), turns()])
    )
    workload = create(f"sharegpt:{path}", {"tokenizer": tokenizer})
    assert drawn_pairs(workload, 2) == [(1, 2), (3, 1)]
    assert workload.describe()["conversations_without_an_answer_left_out"] == 2


def test_whole_conversations_are_sessions_when_turns_are_asked_for(tmp_path: Path, tokenizer: str) -> None:
    path = tmp_path / "sharegpt.json"
    long, middle, short = ["a " * n for n in range(1, 9)], ["a b", "c", "d e f", "g", "unanswered"], ["a", "b"]
    path.write_text(json.dumps([turns(*long), turns(*middle), turns(*short)]))
    workload = create(f"sharegpt:{path}", {"tokenizer": tokenizer})
    assert isinstance(workload, Conversational)
    talks = workload.draw_conversations(6, 1, 3, np.random.default_rng(0))
    assert sorted(talk.tolist() for talk in talks) == [[[1], [1]], [[1, 3, 5], [2, 4, 6]], [[2, 3], [1, 1]]]
    assert "questions and answers of each conversation" in workload.describe()["source"]
    assert sum(talk.shape[1] for talk in workload.draw_conversations(20, 2, 9, np.random.default_rng(0))) == 20
    with pytest.raises(WorkloadError, match="the longest has 4: ask for fewer --turns, or a range such as 1-5"):
        workload.draw_conversations(6, 5, 5, np.random.default_rng(0))

    seeds = Seeds(lengths=1, prompts=2, arrivals=3, order=4, sessions=5)
    requests, facts = build_requests(
        workload,
        7,
        streams=Streams.of(seeds),
        vocab_size=1_000,
        max_model_tokens=None,
        num_warmup=2,
        sessions=SessionSpec(fewest_turns=1, most_turns=4),
    )
    assert facts["sessions"]["sessions"] == 3
    whole = {tuple(request.prompt_tokens for request in requests if request.session == number) for number in range(3)}
    assert whole == {(1, 6, 15, 28), (2, 6), (1,)}
    assert [request.session for request in requests[-2:]] == [None, None]


def test_malformed_conversations_are_named_or_left_out(tmp_path: Path, tokenizer: str) -> None:
    path = tmp_path / "sharegpt.json"
    path.write_text(json.dumps([turns("a", "b"), {"id": 1}, 7, {"conversations": [{"value": 5}, {"value": "b"}]}]))
    with pytest.raises(WorkloadError, match=r"entry 2: not .*\n  entry 3: .*\n  entry 4: .*\n.*--skip-malformed"):
        create(f"sharegpt:{path}", {"tokenizer": tokenizer})
    workload = create(f"sharegpt:{path}", {"tokenizer": tokenizer, "skip_malformed": True})
    assert workload.describe()["malformed_rows_left_out"] == 3
    assert drawn_pairs(workload, 1) == [(1, 1)]


@pytest.mark.parametrize(
    ("text", "message"), [("{}", "a list of conversations"), ("[]", "holds no conversation"), ("[", "cannot read")]
)
def test_a_file_that_is_not_sharegpt_is_refused(tmp_path: Path, tokenizer: str, text: str, message: str) -> None:
    path = tmp_path / "sharegpt.json"
    path.write_text(text)
    with pytest.raises(WorkloadError, match=message):
        create(f"sharegpt:{path}", {"tokenizer": tokenizer})
    with pytest.raises(WorkloadError, match="depend on the tokenizer"):
        create(f"sharegpt:{path}", {})


def test_the_real_dataset_is_counted_with_the_given_tokenizer(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the real `datasets` and `tokenizers`, on a folder in the dataset's form."""
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    rows = [{"prompt": "word " * n, "chosen": "TL;DR: " + "word " * (2 * n), "rejected": "no"} for n in range(1, 6)]
    (dataset / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(carperai, "DATASET", str(dataset))

    workload = create("carperai", {"tokenizer": tokenizer})
    prompt_tokens, output_tokens = workload.draw_lengths(5, np.random.default_rng(0))

    cue_tokens = 4
    assert sorted(prompt_tokens - cue_tokens) == [1, 2, 3, 4, 5]
    assert (output_tokens == 2 * (prompt_tokens - cue_tokens)).all()
    assert workload.longest_request_tokens() is None
    assert workload.describe()["dataset_rows"] == 5
    monkeypatch.setattr(carperai, "DATASET", str(tmp_path / "nowhere"))
    with pytest.raises(WorkloadError, match="leave the option 'tokenizer' out"):
        create("carperai", {"tokenizer": tokenizer})
