"""Which triplets matching sees: never a right document, never another sub-batch, never by chance of
who stands beside whom."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rematch_ray.data.rows import stable_id
from rematch_ray.data.schema import Item, Part, Positive, Sample
from rematch_ray.data.train_batch import TrainBatch
from rematch_ray.model.embedder import Embedder
from rematch_ray.training.pairs import document_uses, draw_pairs
from rematch_ray.training.settings import ObjectiveSettings
from tests.tiny import text_sample, train_batch

FIRST = [text_sample(number, negatives=number % 2) for number in range(4)]
SECOND = [text_sample(number, negatives=1) for number in range(4, 8)]


def cosines(batch: TrainBatch) -> Tensor:
    """A cosine per (query, document), by their names alone."""
    return torch.tensor(
        [
            [
                (stable_id(f"{query}|{document}") % 2001 - 1000) / 1000
                for document in batch.documents.ids
            ]
            for query in batch.queries.ids
        ]
    )


def drawn(batch: TrainBatch, step: int = 0, **settings: Any) -> dict[str, tuple[str, str, int]]:
    """Query -> (positive, negative, slot), by name."""
    batch = replace(batch, step=step)
    pairs = draw_pairs(batch, cosines(batch), ObjectiveSettings(**settings))
    names, found = batch.documents.ids, {}
    for row, first, second, slot in zip(
        pairs.query_rows, pairs.first_rows, pairs.second_rows, pairs.positive_slot, strict=True
    ):
        both = (names[first], names[second])
        found[batch.queries.ids[row]] = (both[slot], both[1 - slot], int(slot))
    return found


def over_steps(batch: TrainBatch, count: int = 60, **settings: Any) -> dict[str, Counter[str]]:
    """Query -> how often each negative was drawn."""
    seen: dict[str, Counter[str]] = {name: Counter() for name in batch.queries.ids}
    for step in range(count):
        for query, (_, negative, _) in drawn(batch, step, **settings).items():
            seen[query][negative] += 1
    return seen


@pytest.fixture
def batch(embedder: Embedder) -> TrainBatch:
    return train_batch(embedder, [FIRST, SECOND])


def test_a_row_draws_alike_whoever_shares_its_rank(embedder: Embedder, batch: TrainBatch) -> None:
    for step in range(8):
        want = drawn(batch, step)
        assert want
        split = drawn(train_batch(embedder, [FIRST]), step)
        split |= drawn(train_batch(embedder, [SECOND]), step)
        assert split == want
        assert drawn(train_batch(embedder, [SECOND, FIRST]), step) == want


def test_the_positive_stands_in_its_slot_and_both_slots_occur(batch: TrainBatch) -> None:
    slots = Counter()
    for step in range(40):
        for query, (positive, negative, slot) in drawn(batch, step).items():
            assert positive == f"d{query[1:]}"
            assert negative != positive
            slots[slot] += 1
    assert 0.35 < slots[0] / slots.total() < 0.65


def test_negatives_come_from_the_rows_own_sub_batch(batch: TrainBatch) -> None:
    for query, seen in over_steps(batch, match_mined=1.0, match_temperature=2.0).items():
        own = FIRST if int(query[1:]) < 4 else SECOND
        allowed = {p.item.id for s in own for p in (*s.positives, *s.negatives)} - {f"d{query[1:]}"}
        assert set(seen) == allowed


def test_hard_negatives_are_the_rows_own(batch: TrainBatch) -> None:
    for query, seen in over_steps(batch, match_mined=0.0).items():
        number = int(query[1:])
        if number < 4 and number % 2 == 0:  # no hard negative: mined whatever the share
            assert f"h{number}.0" not in seen
            assert seen
        else:
            assert set(seen) == {f"h{number}.0"}


def test_mined_negatives_follow_the_softmax_of_their_cosine(embedder: Embedder) -> None:
    batch = train_batch(embedder, [[text_sample(number) for number in range(4)]])
    cosine = torch.tensor([[0.9, 0.10, 0.15, 0.05]]).expand(4, -1)
    seen: Counter[int] = Counter()
    for step in range(3000):
        now = replace(batch, step=step)
        pairs = draw_pairs(now, cosine, ObjectiveSettings(match_mined=1.0))
        row = int((pairs.query_rows == 0).nonzero()[0])
        slots = (pairs.first_rows[row], pairs.second_rows[row])
        seen[int(slots[1 - pairs.positive_slot[row]])] += 1
    share = torch.tensor([seen[column] / 3000 for column in range(4)])
    want = torch.cat([torch.zeros(1), (cosine[0, 1:] / 0.05).softmax(dim=0)])
    torch.testing.assert_close(share, want, atol=0.04, rtol=0)


def with_positives(sample: Sample, *others: Sample) -> Sample:
    return replace(sample, positives=(*sample.positives, *(o.positives[0] for o in others)))


def test_a_listed_document_is_never_a_negative(embedder: Embedder) -> None:
    samples = [with_positives(FIRST[0], FIRST[1]), *FIRST[1:]]
    batch = train_batch(embedder, [samples])
    seen = over_steps(batch, match_mined=1.0, match_temperature=2.0)
    assert not {"d0", "d1"} & set(seen["q0"])
    assert set(seen["q0"]) == {"d2", "d3", "h1.0", "h3.0"}


def test_the_positive_of_a_row_with_the_same_query_is_never_a_negative(embedder: Embedder) -> None:
    twin = replace(FIRST[2], query=FIRST[0].query)
    for sub_batches in ([[FIRST[0], twin, FIRST[1]]], [[FIRST[0], FIRST[1]], [twin, FIRST[3]]]):
        batch = train_batch(embedder, sub_batches)
        seen = over_steps(batch, match_mined=1.0, match_temperature=2.0)
        assert not {"d0", "d2"} & set(seen["q0"])
        assert seen["q0"]


def test_a_hard_negative_that_another_row_names_as_right_is_not_used(embedder: Embedder) -> None:
    wrong = FIRST[1].negatives[0].item
    twin = replace(FIRST[1], positives=(Positive(wrong),), negatives=())
    batch = train_batch(embedder, [[FIRST[1], twin]])
    assert over_steps(batch, match_mined=0.0)["q1"] == Counter()


def test_rows_without_an_admissible_negative_take_no_part(embedder: Embedder) -> None:
    shared = FIRST[0].positives
    samples = [replace(text_sample(number), positives=shared) for number in (0, 2)]
    assert drawn(train_batch(embedder, [samples])) == {}
    assert drawn(train_batch(embedder, [[FIRST[0]]])) == {}
    assert set(drawn(train_batch(embedder, [[FIRST[1]]]))) == {"q1"}


def test_a_sample_that_failed_takes_no_part_and_lends_no_document(embedder: Embedder) -> None:
    bad = replace(FIRST[1], positives=(Positive(Item("bad", (Part("image", image=b"x"),))),))
    batch = train_batch(embedder, [[FIRST[0], bad, FIRST[2]]])
    assert batch.valid.tolist() == [True, False, True]
    seen = over_steps(batch, match_mined=1.0, match_temperature=2.0)
    assert set(seen["q0"]) == {"d2"}
    assert seen["q1"] == Counter()


@pytest.mark.parametrize(("share", "want"), [(1.0, 4), (0.5, 2), (0.3, 1), (0.01, 1)])
def test_the_share_of_rows_is_the_same_in_every_sub_batch(
    batch: TrainBatch, share: float, want: int
) -> None:
    who = set()
    for step in range(10):
        found = drawn(batch, step, match_share=share)
        counts = Counter(int(query[1:]) < 4 for query in found)
        assert counts == {True: want, False: want}
        who |= set(found)
    assert share < 0.3 or len(who) == 8


def test_the_margin_keeps_near_positives_out_but_not_labelled_negatives(
    embedder: Embedder,
) -> None:
    batch = train_batch(embedder, [[text_sample(0, negatives=1), text_sample(1), text_sample(2)]])
    assert batch.documents.ids == ("d0", "h0.0", "d1", "d2")
    cosine = torch.tensor([[0.5, 0.9, 0.45, 0.1]]).expand(3, -1)
    seen: set[str] = set()
    for step in range(40):
        settings = ObjectiveSettings(match_mined=0.5, margin=0.1, match_temperature=2.0)
        pairs = draw_pairs(replace(batch, step=step), cosine, settings)
        row = int((pairs.query_rows == 0).nonzero()[0])
        slots = (pairs.first_rows[row], pairs.second_rows[row])
        seen.add(batch.documents.ids[int(slots[1 - pairs.positive_slot[row]])])
    assert seen == {"h0.0", "d2"}


@pytest.mark.parametrize("match_mined", [0.0, 0.5, 1.0])
def test_the_margin_keeps_what_a_miner_found_out_of_either_draw(
    embedder: Embedder, match_mined: float
) -> None:
    batch = train_batch(embedder, [[text_sample(0, negatives=2)]])
    assert batch.documents.ids == ("d0", "h0.0", "h0.1")
    cosine = torch.tensor([[0.5, 0.9, 0.1]])
    settings = ObjectiveSettings(match_mined=match_mined, margin=0.05, match_temperature=2.0)
    for mined, want in ((False, {1, 2}), (True, {2})):
        found = replace(batch, negative_mined=torch.full((1, 2), mined))
        seen: set[int] = set()
        for step in range(40):
            pairs = draw_pairs(replace(found, step=step), cosine, settings)
            seen |= {*pairs.first_rows.tolist(), *pairs.second_rows.tolist()}
        assert seen - {0} == want


def test_draws_change_with_the_step(batch: TrainBatch) -> None:
    assert len({str(drawn(batch, step)) for step in range(6)}) == 6
    assert drawn(batch, 3) == drawn(batch, 3)


def uses(embedder: Embedder, samples: Sequence[Sample]) -> list[list[float]]:
    return document_uses(train_batch(embedder, [samples])).tolist()


def test_uses_count_positives_and_hard_negatives_of_valid_rows(embedder: Embedder) -> None:
    twin = replace(text_sample(5), positives=FIRST[1].positives)
    assert uses(embedder, [FIRST[1], twin]) == [[1, 1], [1, 0]]
    bad = replace(FIRST[0], positives=(Positive(Item("bad", (Part("image", image=b"x"),))),))
    assert uses(embedder, [FIRST[1], bad]) == [[1, 1, 0], [0, 0, 0]]
