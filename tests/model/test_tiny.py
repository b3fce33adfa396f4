"""The tiny base: a tokenizer, a processor and a model that fit each other and are made by seed."""

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from rematch_ray.data.rows import RowEncoder
from rematch_ray.model.tiny import SPECIAL_TOKENS, TINY_TEMPLATE, TinySettings, tiny_model
from tests.tiny import SIZES, TEXTS


def test_every_text_survives_the_tokenizer(tiny_encoder: RowEncoder) -> None:
    tokenizer = tiny_encoder._tokenizer
    for text in (*TEXTS, "größer 日本 🙂\n\t", "<|im_end|>"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_one_token_each(tiny_encoder: RowEncoder) -> None:
    tokenizer = tiny_encoder._tokenizer
    ids = [tokenizer.encode(token) for token in SPECIAL_TOKENS]
    assert all(len(found) == 1 for found in ids)
    assert len({found[0] for found in ids}) == len(SPECIAL_TOKENS)


def test_yes_and_no_are_one_token_wherever_they_stand(tiny_encoder: RowEncoder) -> None:
    prompt = tiny_encoder.prompt
    assert prompt.yes in prompt.text("Yes") and prompt.yes in prompt.text("or Yes?")


def test_the_vocabulary_is_as_large_as_asked_at_most(tiny_encoder: RowEncoder) -> None:
    assert len(tiny_encoder._tokenizer) <= SIZES.vocabulary


def test_weights_depend_on_the_seed_alone(tiny_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    first, same, other = (tiny_model(tokenizer, SIZES, seed=seed) for seed in (0, 0, 1))
    saved = AutoModelForImageTextToText.from_pretrained(tiny_base)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name])
        assert torch.equal(weight, saved.state_dict()[name]), name
    table = first.get_input_embeddings().weight
    assert not torch.equal(table, other.get_input_embeddings().weight)
    assert first.lm_head.weight is table


def test_the_shipped_sizes_make_a_working_model(tiny_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    model = tiny_model(tokenizer, TinySettings(), seed=0).eval()
    assert 1e6 < model.num_parameters() < 3e6
    ids = torch.tensor([tokenizer.encode(TINY_TEMPLATE.header)])
    assert model(input_ids=ids).logits.isfinite().all()
