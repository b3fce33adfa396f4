"""The choice of negatives: equal to a naive one, and what must hold for any candidates."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rematch_ray.index.mining.references import IMAGE, TEXT, References
from rematch_ray.index.mining.selection import (
    KINDS,
    MINED,
    MINED_MODALITY,
    REASONS,
    Candidates,
    MiningRules,
    RowFacts,
    Selection,
    score_limit,
    select_negatives,
)

Case = tuple[Candidates, RowFacts, MiningRules, int]


def references(rows: list[tuple[int, int, int]]) -> References:
    columns = np.array(rows, np.int64).reshape(-1, 3).T
    return References(*columns)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Few distinct ids, contents and scores, so that equalities and ties are common."""
    few = st.integers(0, 6)
    reference = st.tuples(few, st.integers(0, 2), st.integers(0, 9))
    size = draw(st.integers(0, 14))
    grid = st.integers(-8, 8).map(lambda n: n / 8)
    scores = sorted(draw(st.lists(grid, min_size=size, max_size=size)), reverse=True)
    candidates = Candidates(
        references(draw(st.lists(reference, min_size=size, max_size=size))),
        np.array(scores, np.float32),
        np.array(draw(st.lists(st.integers(1, 3), min_size=size, max_size=size)), np.int8),
        np.array(draw(st.lists(grid, min_size=size, max_size=size)), np.float32),
    )
    row = RowFacts(
        references(draw(st.lists(reference, min_size=1, max_size=3))),
        references(draw(st.lists(reference, max_size=3))),
        draw(st.integers(0, 12)),
        draw(grid),
        draw(st.integers(0, 3)),
    )
    first = draw(st.integers(1, 4))
    last = first + draw(st.integers(0, 10))
    rules = MiningRules(
        per_row=draw(st.integers(1, 5)),
        ranks=(first, last),
        max_share=draw(st.sampled_from([None, 0.5, 1.0])),
        margin=draw(st.sampled_from([None, 0.0, 0.25])),
        max_similarity=draw(st.sampled_from([None, 0.5])),
        modality_share=draw(st.sampled_from([0.0, 0.5, 1.0])),
        content_from_rank=draw(st.sampled_from([None, first, last])),
        draw=draw(st.sampled_from(["random", "hardest"])),
    )
    return candidates, row, rules, draw(st.integers(0, 99))


def choose(case: Case) -> Selection:
    candidates, row, rules, seed = case
    return select_negatives(candidates, row, rules, np.random.default_rng(seed))


def naive_verdicts(case: Case) -> list[str]:
    """Per candidate its kind or the reason against it, one after another in plain Python."""
    candidates, row, rules, _ = case

    def triples(some: References) -> list[tuple[int, int, int]]:
        return list(
            zip(some.id_key.tolist(), some.source_key.tolist(), some.content.tolist(), strict=True)
        )

    def equal(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
        return a[2] == b[2] or (a[0] == b[0] and (a[1] == b[1] or 0 in (a[1], b[1])))

    verdicts: list[str] = []
    seen: list[tuple[int, int, int]] = []
    rank = 0
    for number, document in enumerate(triples(candidates.references)):
        if any(equal(document, right) for right in triples(row.positives)):
            verdicts.append("positive")
            continue
        rank += 1
        score, modality = float(candidates.scores[number]), int(candidates.modality[number])
        wrong = row.target_modality != 0 and modality != row.target_modality
        start = rules.ranks[0]
        if row.target_modality != 0 and rules.content_from_rank is not None:
            start = rules.content_from_rank
        if rank > rules.ranks[1] or (not wrong and rank < start):
            verdict = "rank"
        elif document[2] == row.query_content:
            verdict = "query"
        elif any(equal(document, other) for other in [*triples(row.negatives), *seen]):
            verdict = "duplicate"
        elif rules.max_similarity and candidates.similarity[number] > rules.max_similarity:
            verdict = "near_duplicate"
        elif wrong:
            verdict = MINED_MODALITY if score > row.positive_score else "modality"
        else:
            verdict = (
                MINED if score <= score_limit(row.positive_score, rules) else "too_similar_score"
            )
        verdicts.append(verdict)
        seen.append(document)
    return verdicts


@settings(deadline=None, max_examples=400)
@given(cases())
def test_the_choice_equals_a_naive_one(case: Case) -> None:
    _, row, rules, _ = case
    verdicts = naive_verdicts(case)
    chosen = choose(case)
    for position, kind in zip(chosen.chosen, chosen.kinds, strict=True):
        assert verdicts[position] == kind
    refused = Counter(verdict for verdict in verdicts if verdict not in KINDS)
    assert {k: n for k, n in chosen.dropped.items() if k != "not_drawn"} == dict(refused)
    usable = set(KINDS)
    if row.target_modality == 0 or rules.modality_share == 0:
        usable = {MINED}
    elif rules.modality_share == 1:
        usable = {MINED_MODALITY}
    admissible = [n for n, verdict in enumerate(verdicts) if verdict in usable]
    assert len(chosen.chosen) == min(rules.per_row, len(admissible))
    if rules.draw == "hardest" and len(usable) == 1:
        assert list(chosen.chosen) == admissible[: rules.per_row]


@settings(deadline=None, max_examples=200)
@given(cases())
def test_every_candidate_is_taken_or_dropped_for_a_known_reason(case: Case) -> None:
    chosen = choose(case)
    assert len(chosen.chosen) + sum(chosen.dropped.values()) == len(case[0].scores)
    assert set(chosen.dropped) <= set(REASONS)
    assert list(chosen.chosen) == sorted(set(chosen.chosen))


@settings(deadline=None, max_examples=100)
@given(cases())
def test_the_same_seed_gives_the_same_choice(case: Case) -> None:
    assert choose(case) == choose(case)


def plain(scores: list[float], modality: list[int] | None = None) -> Candidates:
    count = len(scores)
    return Candidates(
        references([(100 + n, 1, 100 + n) for n in range(count)]),
        np.array(scores, np.float32),
        np.array(modality or [TEXT] * count, np.int8),
        np.zeros(count, np.float32),
    )


def asking(target: int = 0, score: float = 0.8) -> RowFacts:
    return RowFacts(references([(1, 1, 1)]), references([]), -1, score, target)


def test_what_scores_close_to_the_positive_is_taken_for_a_positive() -> None:
    rules = MiningRules(per_row=9, max_share=0.5, draw="hardest")
    chosen = select_negatives(
        plain([0.9, 0.8, 0.41, 0.39, 0.1]), asking(), rules, np.random.default_rng(0)
    )
    assert chosen.chosen == (3, 4)
    assert chosen.dropped == {"too_similar_score": 3}


def test_a_share_of_a_negative_score_lies_below_it() -> None:
    assert score_limit(-0.4, MiningRules(max_share=0.95)) < -0.4
    assert score_limit(0.4, MiningRules(max_share=0.95, margin=0.1)) == pytest.approx(0.3)


def test_the_wrong_modality_above_the_positive_needs_no_limit_and_below_it_is_no_lesson() -> None:
    candidates = plain([0.9, 0.85, 0.7, 0.6], [TEXT, IMAGE, TEXT, IMAGE])
    rules = MiningRules(per_row=4, max_share=0.9, draw="hardest")
    chosen = select_negatives(candidates, asking(IMAGE), rules, np.random.default_rng(0))
    assert list(zip(chosen.chosen, chosen.kinds, strict=True)) == [(0, MINED_MODALITY), (3, MINED)]
    assert chosen.dropped == {"too_similar_score": 1, "modality": 1}


def test_buckets_are_mixed_by_their_share_on_average_and_fill_each_other() -> None:
    candidates = plain([0.9, 0.89, 0.88, 0.3, 0.2, 0.1], [TEXT] * 3 + [IMAGE] * 3)
    rules = MiningRules(per_row=1, modality_share=0.25)
    kinds = Counter(
        select_negatives(candidates, asking(IMAGE), rules, np.random.default_rng(seed)).kinds[0]
        for seed in range(400)
    )
    assert kinds[MINED_MODALITY] == pytest.approx(100, abs=30)
    all_of_them = MiningRules(per_row=6, modality_share=0.25)
    chosen = select_negatives(candidates, asking(IMAGE), all_of_them, np.random.default_rng(0))
    assert Counter(chosen.kinds) == {MINED: 3, MINED_MODALITY: 3}


def test_draws_spread_over_the_admissible_and_hardest_takes_the_first() -> None:
    candidates = plain([0.5 - n / 100 for n in range(20)])
    drawn = [
        select_negatives(
            candidates, asking(), MiningRules(per_row=2), np.random.default_rng(seed)
        ).chosen
        for seed in range(60)
    ]
    assert len({position for chosen in drawn for position in chosen}) > 15
    hardest = MiningRules(per_row=2, draw="hardest", ranks=(3, 9))
    assert select_negatives(candidates, asking(), hardest, np.random.default_rng(0)).chosen == (
        2,
        3,
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ranks": (0, 5)}, "first <= last, from 1"),
        ({"ranks": (7, 5)}, "first <= last, from 1"),
        ({"ranks": (2, 5), "content_from_rank": 9}, "lies outside ranks 2, 5"),
        ({"max_share": 1.5}, "less than or equal to 1"),
    ],
)
def test_rules_that_cannot_be_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MiningRules(**given)  # type: ignore[arg-type]


def test_no_candidate_gives_no_negative() -> None:
    chosen = select_negatives(plain([]), asking(), MiningRules(), np.random.default_rng(0))
    assert chosen == Selection((), (), {})
