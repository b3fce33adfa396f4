"""Items in, nested unit vectors out: batching, nesting, inputs, instructions, scores, refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rematch_ray.data.inputs import as_items
from rematch_ray.data.prompts import Side
from rematch_ray.data.schema import Item
from rematch_ray.errors import UserError
from rematch_ray.model.embedder import Embedder, Embeddings
from rematch_ray.scoring.budget import Budget
from rematch_ray.scoring.maxsim import maxsim
from tests.tiny import new_embedder, picture, png, text_sample, train_batch

SIDES: tuple[Side, Side] = ("query", "document")


def assert_close(first: Embeddings, second: Embeddings, tolerance: float = 1e-5) -> None:
    assert first.fused is not None and second.fused is not None
    torch.testing.assert_close(first.vectors, second.vectors, atol=tolerance, rtol=0)
    torch.testing.assert_close(first.fused, second.fused, atol=tolerance, rtol=0)


@pytest.mark.parametrize("side", SIDES)
def test_vectors_have_unit_norm_and_the_sizes_of_the_side(
    embedder: Embedder, mixed: list[Item], side: Side
) -> None:
    got = embedder.encode(mixed, side)
    assert got.vectors.shape == (4, {"query": 4, "document": 6}[side], 16)
    assert got.fused is not None and got.fused.shape == (4, 24)
    for values in (got.vectors, got.fused):
        assert values.dtype == torch.float32
        torch.testing.assert_close(values.norm(dim=-1), torch.ones(values.shape[:-1]))


@pytest.mark.parametrize("side", SIDES)
def test_an_item_embeds_alike_alone_and_beside_longer_ones(
    embedder: Embedder, mixed: list[Item], side: Side
) -> None:
    together = embedder.encode(mixed, side)
    alone = Embeddings.concatenate([embedder.encode([item], side) for item in mixed])
    assert_close(together, alone)
    # different items do not embed alike
    assert (together.vectors[0] - together.vectors[1]).abs().max() > 0.1


def test_batch_size_and_order_change_nothing(embedder: Embedder, mixed: list[Item]) -> None:
    want = embedder.encode_document(mixed)
    assert_close(embedder.encode_document(mixed, batch_size=1), want)
    backwards = embedder.encode_document(mixed[::-1], batch_size=2)
    assert backwards.fused is not None
    assert_close(Embeddings(backwards.vectors.flip(0), backwards.fused.flip(0)), want)


@pytest.mark.parametrize("side", SIDES)
def test_a_smaller_bank_gives_the_same_first_vectors(
    embedder: Embedder, tiny_base: Path, mixed: list[Item], side: Side
) -> None:
    small = new_embedder(tiny_base, ladder=("1x1", "2x3"), fuse_k=2)
    state = embedder.state_dict()
    for name in SIDES:
        key = f"banks.{name}"
        state[key] = state[key][: small.num_vectors(name)]
    small.load_state_dict(state)
    whole, part = embedder.encode(mixed, side), small.encode(mixed, side)
    kept = part.vectors.shape[1]
    torch.testing.assert_close(whole.vectors[:, :kept], part.vectors, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_vectors_and_fused_are_read_from_the_same_states(
    embedder: Embedder, mixed: list[Item]
) -> None:
    rows = [embedder.row_encoder.encode(item, "document") for item in mixed]
    encoded = embedder.encode_rows(embedder.batch(rows, "document"), "document")
    assert encoded.fused is not None
    weight, fused_weight = embedder.state_dict()["vector_projection.weight"], None
    fused_weight = embedder.state_dict()["fused_projection.weight"]
    for row in range(len(mixed)):
        vectors = torch.stack([F.normalize(weight @ state, dim=0) for state in encoded.states[row]])
        torch.testing.assert_close(encoded.vectors[row], vectors)
        mean = encoded.states[row, :3].mean(dim=0)
        torch.testing.assert_close(encoded.fused[row], F.normalize(fused_weight @ mean, dim=0))


def test_the_bank_is_read_by_its_own_side_only(embedder: Embedder, tiny_base: Path) -> None:
    other = new_embedder(tiny_base)
    with torch.no_grad():
        other.banks["document"].add_(1.0)
    first, second = new_embedder(tiny_base), other
    assert torch.equal(first.encode_query("a").vectors, second.encode_query("a").vectors)
    assert not torch.equal(first.encode_document("a").vectors, second.encode_document("a").vectors)


def test_banks_start_distinct_and_as_wide_as_word_embeddings(tiny_base: Path) -> None:
    embedder = new_embedder(tiny_base, ladder=("16x64",))
    want = embedder.backbone.word_embeddings.weight.std().item()
    for side in SIDES:
        bank = embedder.banks[side].detach()
        assert bank.std().item() == pytest.approx(want, rel=0.1)
        assert len(bank.unique(dim=0)) == len(bank)


def test_projections_start_as_the_settings_say(tiny_base: Path) -> None:
    wide = new_embedder(tiny_base, embedding_dim=None, fused_dim=64)
    assert wide.embedding_dim == 64
    assert "vector_projection.weight" not in wide.state_dict()
    assert torch.equal(wide.state_dict()["fused_projection.weight"], torch.eye(64))
    # null: the smaller of the backbone's width and 512
    assert new_embedder(tiny_base, fused_dim=None).fused_dim == 64


def test_a_model_without_fused_vector_says_so_everywhere(tiny_base: Path) -> None:
    embedder = new_embedder(tiny_base, has_fused=False)
    got = embedder.encode_query(["a", "b"])
    assert got.fused is None
    assert not embedder.has_fused
    assert embedder.matcher is None
    with pytest.raises(UserError, match="without a fused vector"):
        embedder.match(torch.zeros(1, 24), torch.zeros(1, 1, 24))
    with pytest.raises(UserError, match="allowed: 1x1"):
        embedder.similarity(got, embedder.encode_document("a"), "fused")


def test_every_kind_of_input_is_one_item_or_a_list_of_them() -> None:
    image, data = picture(), png()
    assert [part.kind for part in as_items("a")[0].parts] == ["text"]
    assert [part.kind for part in as_items(image)[0].parts] == ["image"]
    assert [part.kind for part in as_items(data)[0].parts] == ["image"]
    items = as_items(["a", data, Item.of("b", id="7"), [image, "and text"], (data, data)])
    assert [[part.kind for part in item.parts] for item in items] == [
        ["text"],
        ["image"],
        ["text"],
        ["image", "text"],
        ["image", "image"],
    ]
    assert items[2].id == "7"


def test_a_picture_embeds_alike_as_object_and_as_bytes(embedder: Embedder) -> None:
    assert_close(embedder.encode_document(picture("blue")), embedder.encode_document(png("blue")))


@pytest.mark.parametrize("value", [7, [7], [["a", 7]], [], [None], [b"no image"]])
def test_an_input_of_another_kind_is_refused(embedder: Embedder, value: Any) -> None:
    with pytest.raises(UserError):
        embedder.encode_query(value)


def test_the_default_instruction_is_that_of_the_items_source(tiny_base: Path) -> None:
    instructions = {"notes": {"query": "find it", "document": "store it"}}
    embedder = new_embedder(tiny_base, instructions=instructions)
    item = Item.of("a red bar", source="notes")
    for side, text in (("query", "find it"), ("document", "store it")):
        default = embedder.encode([item], side)
        assert torch.equal(default.vectors, embedder.encode([item], side, instruction=text).vectors)
        none = embedder.encode([item], side, instruction="")
        assert not torch.equal(default.vectors, none.vectors)
        plain = embedder.encode(["a red bar"], side)
        assert torch.equal(none.vectors, plain.vectors)
    assert embedder.instruction_for("query", "elsewhere") == ""


def test_similarity_is_maxsim_at_a_rung_or_the_fused_cosine(
    embedder: Embedder, mixed: list[Item]
) -> None:
    query, document = embedder.encode_query(mixed[:2]), embedder.encode_document(mixed)
    for budget in ("2x3", Budget(2, 3)):
        want = maxsim(query.vectors, document.vectors, Budget(2, 3))
        assert torch.equal(embedder.similarity(query, document, budget), want)
    want = maxsim(query.vectors, document.vectors, Budget(4, 6), reduce="sum")
    assert torch.equal(embedder.similarity(query, document, reduce="sum"), want)
    assert query.fused is not None and document.fused is not None
    fused = embedder.similarity(query, document, "fused")
    torch.testing.assert_close(fused, query.fused @ document.fused.T)
    with pytest.raises(UserError, match="2x3"):
        embedder.similarity(query, document, "3x3")


def test_embeddings_slice_and_concatenate(embedder: Embedder, mixed: list[Item]) -> None:
    got = embedder.encode_document(mixed)
    halves = Embeddings.concatenate([got[:1], got[1:]])
    assert len(got[1:]) == 3
    assert_close(halves, got, tolerance=0)
    assert_close(got.cpu(), got, tolerance=0)
    with pytest.raises(ValueError, match="nothing to concatenate"):
        Embeddings.concatenate([])


def test_encoding_leaves_a_model_in_training_as_it_was(tiny_base: Path) -> None:
    embedder = new_embedder(tiny_base).train()
    got = embedder.encode_query("a")
    assert embedder.training
    assert embedder.backbone.model.training
    assert not got.vectors.requires_grad


def test_gradients_reach_banks_projections_and_backbone(tiny_base: Path) -> None:
    embedder = new_embedder(tiny_base).train()
    batch = train_batch(embedder, [[text_sample(0, image=True)]])
    encoded = embedder.encode_rows(batch.documents, "document")
    assert encoded.fused is not None
    (encoded.vectors[..., 0].sum() + encoded.fused[:, 0].sum()).backward()
    reached = {
        name for name, p in embedder.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert {"banks.document", "vector_projection.weight", "fused_projection.weight"} <= reached
    assert "banks.query" not in reached
    assert any("visual.blocks" in name for name in reached)
    assert any("language_model.layers" in name for name in reached)


def test_half_precision_keeps_heads_and_vectors_in_float32(tiny_base: Path) -> None:
    embedder = new_embedder(tiny_base, dtype="bfloat16")
    assert embedder.backbone.word_embeddings.weight.dtype == torch.bfloat16
    for name, weight in embedder.named_parameters():
        if not name.startswith("backbone."):
            assert weight.dtype == torch.float32, name
    half = embedder.encode_document(["a red bar", png()])
    assert half.vectors.dtype == torch.float32
    assert half.fused is not None
    torch.testing.assert_close(half.fused.norm(dim=-1), torch.ones(2))
    whole = new_embedder(tiny_base).encode_document(["a red bar", png()])
    assert (F.cosine_similarity(half.vectors, whole.vectors, dim=-1) > 0.97).all()


def test_generation_is_not_disturbed_by_the_embedder(tiny_base: Path) -> None:
    embedder = new_embedder(tiny_base)
    table = embedder.backbone.word_embeddings
    ids = torch.tensor([embedder.row_encoder.prompt.text("a red circle left of")])

    def generate(model: Any) -> list[int]:
        return model.generate(ids, max_new_tokens=6, do_sample=False)[0].tolist()

    from transformers import AutoModelForImageTextToText

    untouched = generate(AutoModelForImageTextToText.from_pretrained(tiny_base).eval())
    embedder.encode_document(["a red bar", png()])
    assert generate(embedder.backbone.model) == untouched
    assert type(table).__call__ is torch.nn.Module.__call__
    assert "forward" not in vars(table)
    assert not table._forward_hooks and not table._forward_pre_hooks
