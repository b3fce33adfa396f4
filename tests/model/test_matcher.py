"""The packed matching stage against eight forwards of its own, and who may see whom."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rematch_ray.data.collate import CONTENT, END, HEADER, META, Batch
from rematch_ray.data.prompts import Side
from rematch_ray.data.schema import Item
from rematch_ray.losses.matching import VIEWS, yes_log_odds
from rematch_ray.model.answers import packed_answers
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.matcher import Matcher, embedding_log_odds
from rematch_ray.model.raw_rows import RawRows
from tests.model.triplets import separate_answers
from tests.tiny import new_embedder, png, unit

QUERIES = [
    Item.of("a red circle", id="q0"),
    Item.of(png("red", 32, 48), "like this but blue", id="q1"),
    Item.of("a", id="q2"),
]
FIRST = [
    Item.of(png("red", 48, 64), id="d0"),
    Item.of("a very long text about a bar left of a circle", id="d1"),
    Item.of("short", png(), id="d2"),
]
SECOND = [Item.of("a blue bar", id="e0"), Item.of(png("blue"), id="e1"), Item.of("No", id="e2")]

Triplet = tuple[RawRows, RawRows, RawRows]


@pytest.fixture(scope="module")
def triplet(embedder: Embedder, batch_of: Callable[[list[Item], Side], Batch]) -> Triplet:
    """Three triplets, with texts, images and both, of different lengths."""
    with torch.no_grad():
        return (
            embedder.encode_rows(batch_of(QUERIES, "query"), "query").raw_rows(),
            embedder.encode_rows(batch_of(FIRST, "document"), "document").raw_rows(),
            embedder.encode_rows(batch_of(SECOND, "document"), "document").raw_rows(),
        )


@torch.no_grad()
def packed(embedder: Embedder, triplet: Triplet) -> Tensor:
    assert embedder.matcher is not None
    return packed_answers(
        embedder.backbone, embedder.matcher, embedder.row_encoder.prompt, *triplet
    )


def test_the_packed_form_equals_eight_forwards_of_one_view_each(
    embedder: Embedder, triplet: Triplet
) -> None:
    got = packed(embedder, triplet)
    assert embedder.matcher is not None
    with torch.no_grad():
        want = separate_answers(
            embedder.backbone, embedder.matcher, embedder.row_encoder.prompt, *triplet
        )
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    # the views do differ, so a wrong one would be noticed
    assert (got[:, 0] - got[:, 7]).abs().max() > 0.1


def changed(before: Tensor, after: Tensor) -> list[int]:
    """Views of the first triplet whose answer moved; the others must not move at all."""
    difference = (after - before).abs().amax(dim=-1)
    assert difference[1:].max() < 1e-5
    moved = [view for view in range(8) if difference[0, view] > 1e-3]
    still = [view for view in range(8) if view not in moved]
    assert difference[0, still].max() < 1e-5
    return moved


def nudged(rows: RawRows, segment: int) -> RawRows:
    """The first item's tokens of one segment, changed."""
    assert rows.inputs_embeds is not None
    embeds = rows.inputs_embeds.clone()
    embeds[0, rows.segment[0] == segment] += 1.0
    return replace(rows, inputs_embeds=embeds)


def views(**wanted: int) -> list[int]:
    names = ("query_view", "slot", "document_view")
    return [
        number
        for number, view in enumerate(VIEWS)
        if all(dict(zip(names, view, strict=True))[name] == value for name, value in wanted.items())
    ]


def test_raw_items_move_only_the_answers_that_read_them(
    embedder: Embedder, triplet: Triplet
) -> None:
    query, first, second = triplet
    before = packed(embedder, triplet)
    after = packed(embedder, (query, nudged(first, CONTENT), second))
    assert changed(before, after) == views(slot=0, document_view=0)
    after = packed(embedder, (query, first, nudged(second, CONTENT)))
    assert changed(before, after) == views(slot=1, document_view=0)
    after = packed(embedder, (nudged(query, CONTENT), first, second))
    assert changed(before, after) == views(query_view=0)


def test_vectors_move_only_the_answers_that_read_them(embedder: Embedder, triplet: Triplet) -> None:
    query, first, second = triplet
    before = packed(embedder, triplet)

    def turned(rows: RawRows) -> RawRows:
        fused = rows.fused.clone()
        fused[0] = unit((24,), 5)
        return replace(rows, fused=fused)

    after = packed(embedder, (query, turned(first), second))
    assert changed(before, after) == views(slot=0, document_view=1)
    after = packed(embedder, (turned(query), first, second))
    assert changed(before, after) == views(query_view=1)


def test_end_and_meta_tokens_of_raw_items_are_not_read(
    embedder: Embedder, triplet: Triplet
) -> None:
    before = packed(embedder, triplet)
    for segment in (END, META):
        query, first, second = (nudged(rows, segment) for rows in triplet)
        torch.testing.assert_close(packed(embedder, (query, first, second)), before)
    # nor the documents' own copies of the header, of which the query's serves all
    query, first, second = triplet[0], nudged(triplet[1], HEADER), nudged(triplet[2], HEADER)
    torch.testing.assert_close(packed(embedder, (query, first, second)), before)


def test_swapping_the_slots_swaps_their_answers(embedder: Embedder, triplet: Triplet) -> None:
    query, first, second = triplet
    swapped = packed(embedder, (query, second, first))
    order = [VIEWS.index((q, 1 - slot, d)) for q, slot, d in VIEWS]
    torch.testing.assert_close(swapped[:, order], packed(embedder, triplet), atol=1e-4, rtol=1e-4)


def test_triplets_in_one_batch_do_not_see_each_other(embedder: Embedder, triplet: Triplet) -> None:
    together = packed(embedder, triplet)
    for index in range(3):
        row = torch.tensor([index])
        query, first, second = (rows.take(row) for rows in triplet)
        alone = packed(embedder, (query, first, second))
        torch.testing.assert_close(alone[0], together[index], atol=1e-4, rtol=1e-4)


def test_stored_vectors_alone_answer_the_embedding_view(
    embedder: Embedder, triplet: Triplet
) -> None:
    matcher, prompt = embedder.matcher, embedder.row_encoder.prompt
    assert matcher is not None
    query, first, second = triplet
    answers = yes_log_odds(packed(embedder, triplet), yes_id=prompt.yes, no_id=prompt.no)
    for slot, document in enumerate((first, second)):
        with torch.no_grad():
            got = embedding_log_odds(
                embedder.backbone, matcher, prompt, query.fused, document.fused
            )
        want = answers[:, VIEWS.index((1, slot, 1))]
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert answers.std() > 0.05


def test_matching_an_index_gives_one_answer_per_pair(embedder: Embedder, triplet: Triplet) -> None:
    matcher, prompt = embedder.matcher, embedder.row_encoder.prompt
    assert matcher is not None
    query, document = triplet[0].fused[:2], torch.stack([triplet[1].fused, triplet[2].fused])
    got = embedder.match(query, document)
    assert got.shape == (2, 3)
    torch.testing.assert_close(embedder.match(query, document, chunk=4), got, atol=1e-5, rtol=1e-5)
    for row in range(2):
        for column in range(3):
            with torch.no_grad():
                want = embedding_log_odds(
                    embedder.backbone,
                    matcher,
                    prompt,
                    query[row, None],
                    document[row, column, None],
                )
            torch.testing.assert_close(got[row, column], want[0], atol=1e-5, rtol=1e-5)


def test_a_projected_vector_is_as_long_as_a_word_and_knows_its_role(embedder: Embedder) -> None:
    matcher = embedder.matcher
    assert matcher is not None
    fused = unit((5, 24), 1)
    with torch.no_grad():
        as_query, as_document = matcher.z(fused, role=0), matcher.z(fused, role=1)
        length = (as_query - matcher.roles[0]).norm(dim=-1)
    table = embedder.backbone.word_embeddings.weight
    torch.testing.assert_close(length, table.norm(dim=1).mean().expand(5))
    torch.testing.assert_close(
        as_query - as_document, (matcher.roles[0] - matcher.roles[1]).expand(5, -1)
    )
    # the length of what is stored does not matter
    with torch.no_grad():
        torch.testing.assert_close(matcher.z(fused * 3, role=0), as_query, atol=1e-4, rtol=1e-4)


def test_roles_start_apart_and_the_scale_is_stored() -> None:
    matcher = Matcher(24, 64, 2.5)
    assert not torch.equal(matcher.roles[0], matcher.roles[1])
    assert matcher.state_dict()["scale"].item() == pytest.approx(2.5)


def test_a_model_without_fused_vector_has_no_raw_rows(tiny_base: object) -> None:
    embedder = new_embedder(tiny_base, has_fused=False)  # type: ignore[arg-type]
    rows = [embedder.row_encoder.encode(QUERIES[0], "query")]
    encoded = embedder.encode_rows(embedder.batch(rows, "query"), "query")
    with pytest.raises(ValueError, match="without"):
        encoded.raw_rows()
