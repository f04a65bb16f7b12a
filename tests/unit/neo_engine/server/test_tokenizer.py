"""Text and token ids, with tokenizers trained here: byte-level as Llama 3's, byte fallback as Llama 2's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from neobench.neo_engine.config import ConfigError
from neobench.neo_engine.tokenizer import IdTokenizer, Tokenizer, TokenizerError, load_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "[{{ message.role }}] {{ message['content'] | trim }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
SENTENCES = ["the quick brown fox jumps over the lazy dog", "pack my box with five dozen liquor jugs", "naïve café"]


def byte_level() -> HfTokenizer:
    tokenizer = HfTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def byte_fallback() -> HfTokenizer:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for character in "▁abcdefghijklmnopqrstuvwxyz":
        vocabulary[character] = len(vocabulary)
    tokenizer = HfTokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


@pytest.fixture(scope="module", params=["byte_level", "byte_fallback"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    {"byte_level": byte_level, "byte_fallback": byte_fallback}[request.param]().save(str(folder / "tokenizer.json"))
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text("ab é你好😀👩‍👩‍👧\n", max_size=60))
def test_decoding_token_by_token_gives_the_text_and_no_half_characters(folder: Path, text: str) -> None:
    tokenizer = Tokenizer(folder)
    token_ids = tokenizer.encode(text)
    decoder = tokenizer.decoder()
    pieces = [decoder.push(token_id) for token_id in token_ids]
    assert "".join(pieces) == HfTokenizer.from_file(str(folder / "tokenizer.json")).decode(token_ids)
    assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(token_ids=st.lists(st.integers(3, 280), max_size=300))
def test_any_token_ids_decode_without_error_or_endless_waiting(folder: Path, token_ids: list[int]) -> None:
    decoder = Tokenizer(folder).decoder()
    waited = 0
    for token_id in token_ids:
        waited = 0 if decoder.push(token_id) else waited + 1
        assert waited <= 64


def test_output_longer_than_the_window(folder: Path) -> None:
    text = "the quick brown fox " * 40 + "end"
    tokenizer = Tokenizer(folder)
    decoder = tokenizer.decoder()
    assert "".join(decoder.push(token_id) for token_id in tokenizer.encode(text)) == text


def test_chat_template(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    token_ids = tokenizer.encode_chat([{"role": "user", "content": " hello "}])
    backend = HfTokenizer.from_file(str(folder / "tokenizer.json"))
    assert token_ids == backend.encode("<s>[user] hello\n[assistant]", add_special_tokens=False).ids


def write_template(folder: Path, source: Path, template: str) -> Tokenizer:
    (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    (folder / "chat_template.jinja").write_text(template)
    return Tokenizer(folder)


def test_template_file_may_refuse_and_cannot_escape(folder: Path, tmp_path: Path) -> None:
    refusing = write_template(tmp_path, folder, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(TokenizerError, match="roles must alternate"):
        refusing.encode_chat([{"role": "user", "content": "x"}])
    escaping = write_template(tmp_path, folder, "{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(TokenizerError, match="unsafe"):
        escaping.encode_chat([{"role": "user", "content": "x"}])
    with pytest.raises(ConfigError, match="syntax error"):
        write_template(tmp_path, folder, "{% if %}")


def test_no_template(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(TokenizerError, match="no chat template"):
        Tokenizer(tmp_path).encode_chat([{"role": "user", "content": "x"}])


def test_broken_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="is not a tokenizer"):
        Tokenizer(tmp_path)


def test_models_without_a_tokenizer(tmp_path: Path) -> None:
    assert isinstance(load_tokenizer(None), IdTokenizer)
    tokenizer = load_tokenizer(tmp_path)
    decoder = tokenizer.decoder()
    assert "".join(decoder.push(token) for token in (17, 4095, 0)) == " 17 4095 0"
    with pytest.raises(TokenizerError, match="send the prompt as a list of token ids"):
        tokenizer.encode("hello")
    with pytest.raises(TokenizerError, match="no chat"):
        tokenizer.encode_chat([])
