"""An index that is changed answers as one that is built anew, and no kill shows a half-made one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rematch_ray.errors import UserError
from rematch_ray.index.build import build_index
from rematch_ray.index.changes import add_documents, delete_documents, merge_segments
from rematch_ray.index.generation import Generation
from rematch_ray.index.revision import mark_deleted
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.sharding import opened
from tests.index.made import queries, unit, write_embeddings

POOL = 40


def embeddings_of(path: Path, documents: dict[str, int]) -> Path:
    """An embedding directory of documents whose vectors are drawn from their version's seed."""
    vectors = np.stack([unit((8, 16), seed) for seed in documents.values()])
    fused = np.stack([unit((24,), 1000 + seed) for seed in documents.values()])
    payloads = [{"version": seed, "odd": bool(seed % 2)} for seed in documents.values()]
    return write_embeddings(path, vectors, fused, ids=list(documents), payloads=payloads)


def answers(index: SearchIndex) -> list[Any]:
    """All that a user sees of searches at several budgets, of all documents and of candidates."""
    found = []
    for budget in ("1x1", "4x8", "fused"):
        for options in ({"candidates": "all"}, {"candidates": 12}, {"filter": {"odd": True}}):
            results = index.search(queries(3), budget=budget, top_k=10, **options)
            found.append([[(h.id, h.score, h.payload) for h in r.hits] for r in results])
    return found


@pytest.mark.parametrize("seed", range(5))
def test_after_any_changes_an_index_equals_one_built_anew(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    versions = iter(range(10**6))
    documents = {f"d{n}": next(versions) for n in range(draw.randint(1, 20))}
    build_index(embeddings_of(tmp_path / "first", documents), tmp_path / "index")
    for step in range(8):
        kind = draw.choice(["add", "add", "delete", "merge"])
        if kind == "add":
            some = draw.sample(range(POOL), draw.randint(1, 12))
            new = {f"d{n}": next(versions) for n in some}
            folder = embeddings_of(tmp_path / f"add-{step}", new)
            change = add_documents(tmp_path / "index", folder)
            known = len(documents.keys() & new.keys())
            assert (change.added, change.replaced) == (len(new) - known, known)
            documents |= new
        elif kind == "delete":
            gone = [f"d{n}" for n in draw.sample(range(POOL), draw.randint(1, 12))]
            change = delete_documents(tmp_path / "index", gone)
            known = len(documents.keys() & set(gone))
            assert (change.deleted, change.unknown) == (known, len(gone) - known)
            documents = {name: v for name, v in documents.items() if name not in gone}
        else:
            merge_segments(tmp_path / "index")
            assert SearchIndex.open(tmp_path / "index").info()["segments"] == 1
        index = SearchIndex.open(tmp_path / "index")
        assert len(index) == len(documents)
        assert sorted(index.ids()) == sorted(documents)
        if documents:
            build_index(embeddings_of(tmp_path / f"anew-{step}", documents), tmp_path / "anew")
            assert answers(index) == answers(SearchIndex.open(tmp_path / "anew"))
        index.verify()


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """An index of d0 to d19."""
    documents = {f"d{n}": n for n in range(20)}
    build_index(embeddings_of(tmp_path / "first", documents), tmp_path / "index")
    return tmp_path / "index"


def test_an_open_index_stays_as_it_was_and_the_latest_follows(
    changed: Path, tmp_path: Path
) -> None:
    index = SearchIndex.open(changed)
    before = answers(index)
    assert index.latest() is index
    add_documents(changed, embeddings_of(tmp_path / "more", {"d3": 100, "new": 101}))
    delete_documents(changed, ["d5"])
    merge_segments(changed)
    assert answers(index) == before
    latest = index.latest()
    assert sorted(latest.ids()) == sorted({f"d{n}" for n in range(20)} - {"d5"} | {"new"})
    assert latest.payload(["d3"])[0] == {"version": 100, "odd": False}


def test_an_index_that_is_held_outlives_its_files_and_another_says_to_open_it_again(
    changed: Path, tmp_path: Path
) -> None:
    before = answers(SearchIndex.open(changed))
    held, other = (SearchIndex.open(changed, hold=hold) for hold in (True, False))
    add_documents(changed, embeddings_of(tmp_path / "more", {"d3": 100, "new": 101}))
    merge_segments(changed)
    delete_documents(changed, ["d5"])
    assert answers(held) == before
    with pytest.raises(UserError, match=r"is gone: .* changed twice or more .*; open it again"):
        answers(other)
    delete_documents(changed, ["d6"])
    latest = held.latest()
    for name in ("d7", "d8"):
        delete_documents(changed, [name])
    assert len(latest.ids()) == 19


def test_a_reader_that_was_overtaken_opens_the_generation_that_is_there_now(
    changed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, overtaken = opened.Generation, []

    def open_late(path: Path, name: str, **options: Any) -> Generation:
        if not overtaken:
            overtaken.append(name)
            for number in range(3):  # the generation that was published is gone after that
                delete_documents(changed, [f"d{number}"])
        return real(path, name, **options)

    monkeypatch.setattr(opened, "Generation", open_late)
    assert len(SearchIndex.open(changed)) == 17
    assert overtaken == ["generation-000001"]
    # one that is damaged is not waited for
    [file] = changed.glob("segments/*/keys.npy")
    file.unlink()
    with pytest.raises(UserError, match=r"keys\.npy is missing"):
        SearchIndex.open(changed)


def test_an_index_may_lose_its_last_document_and_get_new_ones(
    changed: Path, tmp_path: Path
) -> None:
    assert delete_documents(changed, [f"d{n}" for n in range(20)]).deleted == 20
    empty = SearchIndex.open(changed)
    assert len(empty) == 0
    assert all(result.hits == [] for result in empty.search(queries(2)))
    assert merge_segments(changed).merged == 0
    add_documents(changed, embeddings_of(tmp_path / "more", {"new": 1}))
    index = SearchIndex.open(changed)
    assert index.ids() == ["new"]
    assert index.info()["segments"] == 1


def test_what_no_kept_generation_names_is_removed(changed: Path) -> None:
    for number in range(5):
        delete_documents(changed, [f"d{number}"])
    merge_segments(changed)
    kept = [json.loads(file.read_text()) for file in (changed / "generations").iterdir()]
    assert len(kept) == 2
    entries = [segment for generation in kept for segment in generation["segments"]]
    named = {entry["tombstones"] for entry in entries} - {None}
    assert {f"tombstones/{file.name}" for file in (changed / "tombstones").iterdir()} == named
    assert {f.name for f in (changed / "segments").iterdir()} == {e["name"] for e in entries}


def test_neither_opening_nor_a_write_reads_what_is_as_long_as_the_corpus(changed: Path) -> None:
    add_documents(changed, embeddings_of(changed.parent / "one-more", {"d30": 30}))
    delete_documents(changed, ["d8"])
    generation = Generation(changed)
    first, second = generation.segments
    as_long = {"live", "keys"}
    assert not as_long & {name for part in (generation, first, second) for name in vars(part)}
    entries = mark_deleted(generation, 999, ["d30"])
    assert [entry.deleted for entry in entries] == [1, 1]
    assert not as_long & set(vars(first)), "the bitmap of a segment was read that loses nothing"
    assert generation.live.sum() == generation.manifest.live == 20
    merge_segments(changed)
    merged = Generation(changed)
    assert np.shares_memory(merged.keys, merged.segments[0].keys), "keys were copied off the map"


def test_a_bitmap_that_is_gone_is_named_when_the_index_is_opened(changed: Path) -> None:
    delete_documents(changed, ["d8"])
    for bitmap in (changed / "tombstones").iterdir():
        bitmap.unlink()
    with pytest.raises(UserError, match=r"tombstones/.* is missing: the index is damaged"):
        SearchIndex.open(changed)


def test_deleting_what_is_not_there_changes_nothing(changed: Path) -> None:
    before = SearchIndex.open(changed)
    change = delete_documents(changed, ["nobody"])
    assert (change.deleted, change.unknown) == (0, 1)
    assert before.latest() is before


def edit(path: Path, **changes: Any) -> Path:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))
    return path


def damage(path: Path) -> Path:
    file = path / "part-00000.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return path


REFUSED: dict[str, Callable[[Path], Path]] = {
    "does not fit this index": lambda p: edit(p, identity={"digest": "other", "ladder": ["1x1"]}),
    "has side 'query', the index .* 'document'": lambda p: edit(p, side="query"),
    "has instruction 'other', the index .* 'find it'": lambda p: edit(p, instruction="other"),
    "has vectors per document 4, the index .* 8": lambda p: edit(p, R=4),
    "has fused_dim None, the index .* 24": lambda p: edit(p, F=None),
    r"embedding shard .*part-00000\.parquet (does not match its checksum|is not Parquet)": damage,
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_refused_and_nothing_is_left(
    message: str, changed: Path, tmp_path: Path
) -> None:
    before = {file for file in changed.rglob("*") if file.is_file()}
    folder = REFUSED[message](embeddings_of(tmp_path / "more", {"new": 1, "newer": 2}))
    with pytest.raises(UserError, match=message):
        add_documents(changed, folder)
    assert {file for file in changed.rglob("*") if file.is_file()} == before


def test_a_directory_that_is_no_index_is_refused_by_every_change(
    changed: Path, tmp_path: Path
) -> None:
    more = embeddings_of(tmp_path / "more", {"new": 1})
    nothing = tmp_path / "nothing"
    for change in (
        lambda: add_documents(nothing, more),
        lambda: delete_documents(nothing, ["a"]),
        lambda: merge_segments(nothing),
    ):
        with pytest.raises(UserError, match="is not an index"):
            change()
    assert not nothing.exists()


# a writer that never stops: what it does next is a function of how often it has done something
WRITER = """
import sys
from pathlib import Path
from tests.index.test_changes import one_change
folder, done = Path(sys.argv[1]), int(sys.argv[2])
while True:
    one_change(folder, done)
    done += 1
    print(done, flush=True)
"""


def one_change(folder: Path, number: int) -> None:
    index = folder / "index"
    if number % 5 == 4:
        merge_segments(index)
    elif number % 5 in (1, 3):
        delete_documents(index, gone(number))
    else:
        add_documents(index, folder / f"add-{number % 3}")


def gone(number: int) -> list[str]:
    return [f"d{n}" for n in range(number % 7, POOL, 7)]


def added(which: int) -> dict[str, int]:
    return {f"d{n}": 100 * which + n for n in range(which, POOL, 3)}


def after(states: list[dict[str, int]], number: int) -> dict[str, int]:
    """The documents after so many changes."""
    while len(states) <= number:
        done, documents = len(states) - 1, dict(states[-1])
        if done % 5 in (1, 3):
            documents = {name: v for name, v in documents.items() if name not in gone(done)}
        elif done % 5 != 4:
            documents |= added(done % 3)
        states.append(documents)
    return states[number]


def killed_writers(folder: Path, seed: int, program: str = WRITER) -> Iterator[int]:
    """Start a writer again and again, kill it at a random moment; yield the changes it told of."""
    draw, done = random.Random(seed), 0
    while True:
        writer = subprocess.Popen(
            [sys.executable, "-c", program, str(folder), str(done)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert writer.stdout is not None
        told = writer.stdout.readline()  # it has loaded its libraries
        time.sleep(draw.uniform(0, 0.5))
        writer.send_signal(signal.SIGKILL)
        told += writer.communicate()[0]
        # the last change may have been published and not yet told: the next writer does it again
        done = int(told.splitlines()[-1])
        yield done


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kills", "seed"), [(3, 0), pytest.param(50, 1, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_a_killed_writer_leaves_the_state_before_or_after_its_change(
    kills: int, seed: int, tmp_path: Path
) -> None:
    start = {f"d{n}": n for n in range(0, POOL, 2)}
    build_index(embeddings_of(tmp_path / "first", start), tmp_path / "index")
    for which in range(3):
        embeddings_of(tmp_path / f"add-{which}", added(which))
    states = [start]
    for done in islice(killed_writers(tmp_path, seed), kills):
        index = SearchIndex.open(tmp_path / "index")
        index.verify()
        ids = index.ids()
        found = {
            name: payload["version"]
            for name, payload in zip(ids, index.payload(ids), strict=True)
            if payload is not None
        }
        assert len(ids) == len(set(ids)) == len(found)
        assert found in (after(states, done), after(states, done + 1))
