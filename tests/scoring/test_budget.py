"""Budgets and ladders: how they are written, what they allow and what they refuse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rematch_ray.errors import UserError
from rematch_ray.scoring.budget import DEFAULT_LADDER, Budget, Ladder

counts = st.integers(1, 10_000)


@given(counts, counts)
def test_a_budget_reads_back_as_it_is_written(r_q: int, r_d: int) -> None:
    assert Budget.parse(str(Budget(r_q, r_d))) == Budget(r_q, r_d)


def test_the_fused_rung_reads_back_and_costs_one_product() -> None:
    assert Budget.parse(" Fused ") is Budget.FUSED
    assert Budget.FUSED.is_fused
    assert Budget.FUSED.dot_products == 1
    assert Budget(4, 8).dot_products == 32


@pytest.mark.parametrize(
    "text", ["", "4", "4x", "x8", "4*8", "-1x4", "0x4", "4x0", "4x8x2", "full"]
)
def test_a_text_that_is_no_budget_is_refused_by_name(text: str) -> None:
    with pytest.raises(UserError, match="budget"):
        Budget.parse(text)


def test_rungs_must_be_nested_and_differ() -> None:
    for rungs in (["4x8", "2x4"], ["2x4", "2x4"], ["2x8", "4x4"], ["fused", "1x1"], []):
        with pytest.raises(UserError):
            Ladder.parse(rungs)


def test_a_ladder_reads_texts_pairs_and_budgets() -> None:
    ladder = Ladder.parse(["1x1", (2, 4), Budget(2, 8)])
    assert ladder.texts() == ["1x1", "2x4", "2x8"]
    assert (ladder.num_query_vectors, ladder.num_document_vectors) == (2, 8)


def test_planes_tile_the_document_vectors() -> None:
    assert DEFAULT_LADDER.planes() == ((0, 1), (1, 4), (4, 8), (8, 16), (16, 64))
    # two rungs with the same document vectors share their planes
    assert Ladder.parse(["1x4", "2x4", "2x8"]).planes() == ((0, 4), (4, 8))


def test_names_stand_for_the_nearest_rung_below() -> None:
    names = Ladder.parse(["1x1", "2x3", "4x6"]).names()
    assert {name: str(rung) for name, rung in names.items()} == {
        "fast": "2x3",
        "balanced": "4x6",
        "full": "4x6",
    }
    # with nothing below, the lowest rung
    assert str(Ladder.parse(["4x8"]).names()["fast"]) == "4x8"


def test_a_budget_resolves_from_rung_text_name_or_nothing() -> None:
    resolve = DEFAULT_LADDER.resolve
    assert resolve(None, has_fused=False) == Budget(16, 64)
    assert resolve("Balanced", has_fused=False) == Budget(8, 16)
    assert resolve("4X8", has_fused=False) == Budget(4, 8)
    assert resolve(Budget(2, 4), has_fused=False) == Budget(2, 4)
    assert resolve("fused", has_fused=True).is_fused


@pytest.mark.parametrize("budget", ["3x3", "fused", "cheap", "0x0", Budget(3, 3), Budget.FUSED])
def test_a_budget_off_the_ladder_is_refused_with_the_rungs(budget: str | Budget) -> None:
    with pytest.raises(UserError, match=r"1x1, 2x4, 4x8, 8x16, 16x64, fast, balanced, full|0x0"):
        DEFAULT_LADDER.resolve(budget, has_fused=False)
