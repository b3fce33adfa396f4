"""The capacity planner: bytes as the files have them, and needs that grow with what is asked."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rematch_ray import cli
from rematch_ray.errors import UserError
from rematch_ray.index.build import build_index
from rematch_ray.index.capacity import Machine, plan_capacity
from rematch_ray.index.cost_meter import measure_costs
from rematch_ray.index.costs import COARSE_LISTS, EXPECTED, query_time
from rematch_ray.index.footprint import Corpus, components, parse_count
from rematch_ray.index.planner import Plan
from rematch_ray.scoring.budget import Budget, Ladder
from tests.index.made import LADDER, unit, write_embeddings

# of each file
HEADER_BYTES = 128


@pytest.mark.parametrize("originals", [True, False])
@pytest.mark.parametrize("has_fused", [True, False])
def test_predicted_bytes_are_those_of_the_files(
    has_fused: bool, originals: bool, tmp_path: Path
) -> None:
    rows, payload = 2000, {"name": "x" * 100, "group": "animals", "number": 7}
    source = write_embeddings(
        tmp_path / "embeddings",
        unit((rows, 8, 16), 1),
        unit((rows, 24), 2) if has_fused else None,
        payloads=[payload] * rows,
    )
    build_index(source, tmp_path / "index", originals=originals)
    corpus = Corpus(
        rows,
        dim=16,
        fused_dim=24 if has_fused else None,
        ladder=Ladder.parse(LADDER),
        originals=originals,
        payload_bytes=len(json.dumps(payload)) + len("doc-0000"),
    )
    [segment] = (tmp_path / "index" / "segments").iterdir()
    parts = components(corpus)
    counted = set()
    for part in parts:
        files = {file for name in part.files for file in segment.glob(name)}
        real = sum(file.stat().st_size for file in files)
        slack = 0.25 * real if part.name == "payload" else HEADER_BYTES * len(files)
        assert abs(real - part.total(rows)) <= slack, part.name
        counted |= files
    whole = sum(file.stat().st_size for file in segment.iterdir())
    assert {file.name for file in segment.iterdir()} - {file.name for file in counted} == {
        "segment.json"
    }
    assert whole == pytest.approx(sum(part.total(rows) for part in parts), rel=0.1)


LARGER: list[dict[str, Any]] = [
    {"num_documents": 2 * 10**7},
    {"dim": 256},
    {"fused_dim": 1024},
    {"ladder": Ladder.parse(["1x1", "2x4", "4x8", "8x16", "16x96"])},
    {"payload_bytes": 400},
]


@pytest.mark.parametrize("change", LARGER, ids=lambda change: next(iter(change)))
@pytest.mark.parametrize("coarse", COARSE_LISTS)
def test_more_of_anything_never_needs_less(change: dict[str, Any], coarse: str) -> None:
    small = Corpus(10**7, coarse=coarse)
    before = plan_capacity(small, Machine())
    after = plan_capacity(replace(small, **change), Machine())
    assert after.disk_bytes > before.disk_bytes
    for less, more in zip(before.budgets, after.budgets, strict=True):
        assert more.memory_bytes >= less.memory_bytes
        assert more.whole_memory_bytes >= less.whole_memory_bytes
        assert more.core_ms >= less.core_ms or more.shards != less.shards
        assert more.machines >= less.machines
        assert more.gpu.cards >= less.gpu.cards


@pytest.mark.parametrize("change", [{"ram_gib": 512.0}, {"ssd_gib": 8000.0}, {"cores": 64}])
def test_larger_machines_are_never_more(change: dict[str, Any]) -> None:
    corpus = Corpus(10**9)
    small = plan_capacity(corpus, Machine(), queries_per_second=1000).budgets
    large = plan_capacity(corpus, replace(Machine(), **change), queries_per_second=1000).budgets
    assert all(b.machines <= a.machines for a, b in zip(small, large, strict=True))


def test_more_load_needs_more_machines_and_no_more_memory() -> None:
    calm, busy = (
        plan_capacity(Corpus(10**8), Machine(), queries_per_second=load).budgets[-1]
        for load in (0, 50_000)
    )
    assert calm.replicas == 1
    assert busy.machines > calm.machines
    assert busy.memory_bytes == calm.memory_bytes


def test_larger_budgets_never_need_less_memory_or_time() -> None:
    budgets = plan_capacity(Corpus(10**8, fused_dim=None), Machine(), ssd_wait_ms=0).budgets
    for smaller, larger in itertools.pairwise(budgets):
        assert larger.memory_bytes >= smaller.memory_bytes
        assert larger.core_ms >= smaller.core_ms


def test_one_bit_codes_lie_in_memory_beside_those_that_they_propose() -> None:
    needs = {
        kind: plan_capacity(Corpus(10**6, fused_dim=128, coarse=kind), Machine()).budgets[-1]
        for kind in ("scan", "scan4", "scan1")
    }
    # 16 bytes of signs, 2 of a length, 128 of a centre shared by 64; 64 bytes of four bits each
    assert needs["scan1"].memory_bytes - needs["scan"].memory_bytes == 20 * 10**6
    assert needs["scan"].memory_bytes > needs["scan4"].memory_bytes
    assert needs["scan1"].core_ms < needs["scan4"].core_ms < needs["scan"].core_ms


def test_without_waiting_everything_that_is_read_lies_in_memory() -> None:
    for need in plan_capacity(Corpus(10**7), Machine(), ssd_wait_ms=0).budgets:
        assert need.ssd_planes == ()
        assert need.memory_bytes == need.whole_memory_bytes


def test_what_few_candidates_read_goes_to_the_ssd_first() -> None:
    patient = plan_capacity(Corpus(10**7), Machine(), ssd_wait_ms=60).budgets[-1]
    assert patient.ssd_planes == ("originals", "plane 16:64")
    assert patient.memory_bytes < patient.whole_memory_bytes
    assert 0 < patient.ssd_ms <= 60


def test_a_small_corpus_is_scored_whole_in_memory_on_one_machine() -> None:
    for need in plan_capacity(Corpus(10), Machine()).budgets:
        assert (need.candidates, need.machines, need.gpu.cards) == (10, 1, 1)
        assert need.ssd_planes == ()


def test_a_narrowed_plan_costs_what_its_survivors_cost() -> None:
    ladder = Ladder.parse(["1x1", "4x8", "16x64"])
    sizes = {"num_documents": 10**6, "dim": 128, "fused_dim": None, "coarse": "scan"}
    wide = query_time(EXPECTED, Plan(ladder.top, 2000), **sizes)
    narrow = query_time(EXPECTED, Plan(ladder.top, 2000, ((Budget(4, 8), 200),)), **sizes)
    carried = 2000 * EXPECTED.document(Budget(4, 8), 128)
    carried += 200 * EXPECTED.document(ladder.top, 128, Budget(4, 8))
    saved = 2000 * EXPECTED.document(ladder.top, 128) - carried
    assert wide.core - narrow.core == pytest.approx(saved / 1e6 - EXPECTED.stage_ms)


def test_all_documents_in_order_cost_less_than_as_many_candidates() -> None:
    top = Budget(16, 64)
    sizes = {"num_documents": 10**5, "dim": 128, "fused_dim": None, "coarse": "scan"}
    whole = query_time(EXPECTED, Plan(top, None), **sizes)
    assert whole.core == pytest.approx(
        EXPECTED.call_ms + EXPECTED.stage_ms + EXPECTED.every_document(top, 128) * 0.1
    )
    assert whole.core < query_time(EXPECTED, Plan(top, 10**5), **sizes).core


@pytest.mark.parametrize("text", ["", "0", "-5", "1e-3", "1.5", "ten", "1e400", "10 Mio"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not a count"):
        parse_count(text)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Corpus(0), "documents 0"),
        (lambda: Corpus(5, dim=0), "dim 0"),
        (lambda: Corpus(5, coarse="hnsw"), "'hnsw'"),
        (lambda: Machine(ram_gib=0), "ram_gib 0"),
        (lambda: Machine(ssd_gib=float("nan")), "ssd_gib nan"),
        (lambda: plan_capacity(Corpus(5), Machine(), queries_per_second=-1), "queries_per_second"),
    ],
)
def test_what_is_not_possible_is_refused_by_name(build: Callable[[], Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        build()


def test_constants_are_taken_through_a_real_index() -> None:
    costs = measure_costs(dim=8, ladder=Ladder.parse(["1x1", "2x4"]))
    for name in ("call_ms", "scan_ns"):
        assert getattr(costs, name) > 0, name
    assert costs.document(Budget(2, 4), 8) >= costs.document(Budget(1, 1), 8) >= 0
    assert costs.measured != EXPECTED.measured


def test_the_verb_prints_tables_and_gives_the_same_as_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["plan", "--docs", "1e9", "--dim", "64", "--no-originals", "--json"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out.splitlines()[-1])
    assert (told["documents"], told["dim"]) == (10**9, 64)
    assert told["disk_bytes"] == sum(part["bytes"] for part in told["parts"])
    assert [need["budget"] for need in told["budgets"]][:2] == ["fused", "1x1"]
    assert "\noriginals" not in captured.err
    assert "1,000,000,000 documents of 64 vectors of 64" in captured.err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--docs", "many"], "'many' is not a count"),
        (["--docs", "5", "--ladder", "1x1", "4x8", "--vectors", "64"], "disagree"),
        (["--docs", "5", "--ladder", "1by1"], "1by1"),
        (["--docs", "5", "--ram-gib", "-1"], "ram_gib -1"),
        (["--docs", "5", "--coarse", "ivv"], "did you mean ivf"),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", *argv]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("vectors", "top"), [("4", "2x4"), ("6", "6x6"), ("96", "16x96")])
def test_fewer_or_more_vectors_end_the_default_ladder_there(
    vectors: str, top: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "--docs", "1000", "--vectors", vectors, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["ladder"][-1] == top


@pytest.mark.parametrize("documents", [10**12, 10**18])
def test_a_plan_of_any_size_is_found_in_few_steps(
    documents: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def counted(*given: Any, **named: Any) -> Any:
        tried.append(named["shards"])
        return query_time(*given, **named)

    monkeypatch.setattr("rematch_ray.index.capacity.query_time", counted)
    needs = plan_capacity(Corpus(documents), Machine()).budgets
    # a hundredth more of them each time, from the fewest that hold the index
    assert len(tried) < 2000
    assert all(need.shards * need.replicas > documents / 1e8 for need in needs)
