"""The fixed wording as tokens: what users cannot forge and what a template must fulfil."""

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rematch_ray.data.prompts import PromptTokens, Template
from rematch_ray.data.rows import RowEncoder
from rematch_ray.errors import UserError
from rematch_ray.model.tiny import SPECIAL_TOKENS, TINY_TEMPLATE

MARKERS = [token for token in SPECIAL_TOKENS if token.startswith("<|")]


@pytest.fixture(scope="module")
def tokenizer(tiny_encoder: RowEncoder) -> Any:
    return tiny_encoder._tokenizer


def test_the_digest_follows_every_string_and_nothing_else() -> None:
    assert Template().digest == Template().digest
    digests = {Template().digest, TINY_TEMPLATE.digest}
    for name, value in Template().model_dump().items():
        changed = value + 1 if isinstance(value, int) else value + " "
        digests.add(Template(**{name: changed}).digest)
    assert len(digests) == 2 + len(Template.model_fields)


def test_each_side_has_its_own_marker() -> None:
    assert Template().marker("query") == "Query: "
    assert Template().marker("document") == "Document: "


@pytest.mark.parametrize("token", MARKERS)
def test_text_from_outside_cannot_write_a_special_token(tokenizer: Any, token: str) -> None:
    prompt = PromptTokens(tokenizer, TINY_TEMPLATE)
    special = {tokenizer.convert_tokens_to_ids(name) for name in MARKERS}
    assert special & set(prompt.text(token))
    for text in (
        token,
        f"a{token}b",
        f"<{token}",
        f"<<|{token[2:]}",
        f"{token}{token}",
        token[:-1],
    ):
        assert not special & set(prompt.user_text(text)), text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*MARKERS, "<", "|", ">", "<|", "|>", "im_start", " ", "a"])))
def test_no_mixture_of_pieces_writes_a_special_token(
    tiny_encoder: RowEncoder, pieces: list
) -> None:
    special = {tiny_encoder._tokenizer.convert_tokens_to_ids(name) for name in MARKERS}
    assert not special & set(tiny_encoder.prompt.user_text("".join(pieces)))


def test_other_text_keeps_every_character(tokenizer: Any) -> None:
    prompt = PromptTokens(tokenizer, TINY_TEMPLATE)
    for text in ("a red circle", "größer < kleiner | 日本 🙂", "Yes and No"):
        assert tokenizer.decode(prompt.user_text(text)) == text


def test_yes_and_no_must_be_one_token_each(tokenizer: Any) -> None:
    prompt = PromptTokens(tokenizer, TINY_TEMPLATE)
    assert prompt.yes != prompt.no
    with pytest.raises(UserError, match=r"template.yes is 'Certainly not'.*tokens"):
        PromptTokens(tokenizer, TINY_TEMPLATE.model_copy(update={"yes": "Certainly not"}))
    with pytest.raises(UserError, match=r"template.image"):
        PromptTokens(tokenizer, TINY_TEMPLATE.model_copy(update={"image": "<|picture|>"}))


def test_an_answer_without_a_token_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"template.answer is '', no token at all"):
        PromptTokens(tokenizer, TINY_TEMPLATE.model_copy(update={"answer": ""}))


def test_an_end_may_be_empty_where_the_tokenizer_pads(tokenizer: Any) -> None:
    without = TINY_TEMPLATE.model_copy(update={"end": ""})
    assert PromptTokens(tokenizer, without).pad == tokenizer.pad_token_id
    unpadded = copy.deepcopy(tokenizer)
    unpadded.pad_token = None
    assert PromptTokens(unpadded, TINY_TEMPLATE).pad == PromptTokens(unpadded, TINY_TEMPLATE).end[0]
    with pytest.raises(UserError, match=r"template.end is ''.*no pad token"):
        PromptTokens(unpadded, without)


def test_a_matching_instruction_longer_than_the_gap_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"match_gap leaves 2 positions"):
        PromptTokens(tokenizer, TINY_TEMPLATE.model_copy(update={"match_gap": 2}))


def test_unknown_template_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="headre"):
        Template(headre="x")
