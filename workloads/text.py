"""Prompts as text, for engines that take no token ids: common words, each one token to nearly every tokenizer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from neobench.harness.request import PromptRequest

_COMMON = """
    the of and to in is you that it he was for on are as with his they at be this have from or one had by word but not
    what all were we when your can said there use an each which she do how their if will up other about out many then
    them these so some her would make like him into time has look two more write go see number no way could people my
    than first water been call who oil its now find long down day did get come made may part over new sound take only
    little work know place year live me back give most very after thing our just name good sentence man think say great
    where help through much before line right too mean old any same tell boy follow came want show also around form
    three small set put end does another well large must big even such because turn here why ask went men read need
    land different home us move try kind hand picture again change off play spell air away animal house point page
    letter mother answer found study still learn should world high every near add food between own below country plant
    last school father keep tree never start city earth eye light thought head under story saw left few while along
    might close something seem next hard open example begin life always those both paper together got group often run
    """
WORDS = tuple(_COMMON.split())


def as_text(requests: Sequence[PromptRequest], *, vocab_size: int) -> list[PromptRequest]:
    """The same requests with prompts of as many words as they had token ids; the words follow from the ids alone.

    An id becomes the words that are its digits in base len(WORDS), all ids the same number of them. Prompts that begin
    with different ids so begin with different words, unless they are shorter than one id's words.
    """
    digits = max(1, math.ceil(math.log(vocab_size, len(WORDS))))
    return [_as_text(request, digits) for request in requests]


def _as_text(request: PromptRequest, digits: int) -> PromptRequest:
    needed_ids = math.ceil(request.prompt_tokens / digits)
    words = [
        WORDS[token_id // len(WORDS) ** place % len(WORDS)]
        for token_id in request.prompt_token_ids[:needed_ids]
        for place in range(digits)
    ]
    text = " ".join(words[: request.prompt_tokens])
    return msgspec.structs.replace(request, prompt_json=msgspec.json.encode(text))
