"""Writes through the writer: an index that was written to equals one built anew, each caller learns
what its own write did, and a bad document harms nobody else."""

import asyncio
import logging
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rematch_ray.data.item import Item
from rematch_ray.errors import UserError
from rematch_ray.index.build import build_index
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.sharding.build import build_sharded
from rematch_ray.serve.backend import (
    EncodedQuery,
    NewDocument,
    NotReadyError,
    OverloadedError,
    WriteResult,
)
from rematch_ray.serve.commit_queue import CommitQueue
from rematch_ray.serve.commits import IndexWriter, Outcome, Write
from rematch_ray.serve.document_writer import DocumentWriter
from rematch_ray.serve.documents import DocumentForm
from rematch_ray.serve.settings import WriterSettings
from tests.index.made import unit, write_embeddings
from tests.index.test_changes import answers, embeddings_of

POOL = 30


def vectors_of(version: int) -> EncodedQuery:
    """As the embedding directories of `embeddings_of` have them."""
    return EncodedQuery(unit((8, 16), version)[None], unit((24,), 1000 + version)[None])


class Encoder:
    """Documents of which the text is a version; counts how many it encodes at a time."""

    def __init__(self) -> None:
        self.instructions: set[str] = set()
        self.encoded = self.now = self.most = 0

    async def __call__(self, item: Item, instruction: str) -> EncodedQuery:
        if item.text == "other model":
            return replace(vectors_of(1), model="e2" * 32)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0)
            if item.text == "corrupt":
                raise UserError("the image cannot be decoded")
        finally:
            self.now -= 1
        self.instructions.add(instruction)
        self.encoded += 1
        return vectors_of(int(item.text))


class Written:
    """A writer over an index directory, and what it did."""

    def __init__(self, path: Path, **settings: Any) -> None:
        chosen = WriterSettings(**{"commit_wait_s": 0.0, "merge_fan_in": 100} | settings)
        self.path, self.encoder = path, Encoder()
        self.changes: list[int] = []
        self.merged: list[int] = []
        identity = DocumentForm.of(path).identity
        self.index = IndexWriter(path, identity, chosen, visible_within_s=2.4)
        self.queue = CommitQueue(self._commit, chosen, tidy=self._tidy)
        self.writer = DocumentWriter(self.index, self.encoder, chosen, self.queue)

    def _commit(self, writes: Sequence[Write], patience_s: float) -> list[Outcome]:
        self.changes.append(len(writes))
        return self.index.commit(writes, patience_s)

    def _tidy(self, is_pressed: bool) -> None:
        self.merged.append(self.index.merge(is_pressed=is_pressed))

    async def upsert(self, versions: dict[str, int]) -> WriteResult:
        return await self.writer.upsert([document(*pair) for pair in versions.items()])


def document(name: str, number: int, **payload: Any) -> NewDocument:
    """As `embeddings_of` writes it; every third one comes with its vectors."""
    content: dict[str, Any] = {"item": Item.of(str(number))}
    if number % 3 == 0:
        content = {"vectors": vectors_of(number)}
    return NewDocument(name, payload={"version": number, "odd": bool(number % 2)} | payload,
                       source="s", **content)  # fmt: skip


def build(folder: Path, name: str, documents: dict[str, int], num_shards: int) -> Path:
    source = embeddings_of(folder / f"{name}-embeddings", documents)
    if num_shards == 1:
        build_index(source, folder / name)
    else:
        build_sharded(source, folder / name, num_shards=num_shards)
    return folder / name


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """An index of d0 to d9, whose versions are their numbers."""
    return build(tmp_path, "index", {f"d{n}": n for n in range(10)}, 1)


def counts(result: WriteResult) -> tuple[int, int, int, int]:
    return result.added, result.replaced, result.deleted, result.unknown


@pytest.mark.parametrize(("seed", "num_shards"), [(0, 1), (1, 1), (2, 3), (3, 3)])
def test_after_any_writes_an_index_equals_one_built_anew(
    seed: int, num_shards: int, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    versions = iter(range(10**6))
    documents = {f"d{n}": next(versions) for n in range(draw.randint(5, 20))}
    path = build(tmp_path, "index", documents, num_shards)

    async def write() -> None:
        nonlocal documents
        written = Written(path, commit_rows=draw.choice([4, 100]), merge_fan_in=3)
        for step in range(4):
            requests, expected = [], []
            for _ in range(draw.randint(1, 6)):
                kind = draw.choice(["upsert", "upsert", "delete", "filter"])
                names = [f"d{n}" for n in draw.sample(range(POOL), draw.randint(1, 6))]
                if kind == "upsert":
                    new = {name: next(versions) for name in names}
                    known = len(documents.keys() & new.keys())
                    # by vectors: encoding would change the order of arrival
                    requests.append(
                        written.writer.upsert(
                            [
                                NewDocument(
                                    name,
                                    vectors=vectors_of(v),
                                    payload={"version": v, "odd": bool(v % 2)},
                                )
                                for name, v in new.items()
                            ]
                        )
                    )
                    expected.append((len(new) - known, known, 0, 0))
                    documents |= new
                elif kind == "delete":
                    known = len(documents.keys() & set(names))
                    requests.append(written.writer.delete(names))
                    expected.append((0, 0, known, len(names) - known))
                    documents = {n: v for n, v in documents.items() if n not in names}
                else:
                    version = draw.choice([*documents.values(), -1])
                    gone = [n for n, v in documents.items() if v == version]
                    requests.append(written.writer.delete(filter={"version": version}))
                    expected.append((0, 0, len(gone), 0))
                    documents = {n: v for n, v in documents.items() if n not in gone}
            results = await asyncio.gather(*requests)
            assert [counts(result) for result in results] == expected
            found = SearchIndex.open(path)
            assert {result.visible_within_s for result in results} == {2.4}
            assert sorted(found.ids()) == sorted(documents)
            assert [p["version"] for p in found.payload(list(documents)) if p] == [
                *documents.values()
            ]
            if documents:
                anew = build(tmp_path, f"anew-{step}", documents, num_shards)
                assert answers(found) == answers(SearchIndex.open(anew))
            found.verify()

    asyncio.run(write())


def test_writes_that_arrive_together_share_a_change_and_learn_their_own_counts(
    index: Path,
) -> None:
    async def write() -> None:
        written = Written(index, commit_wait_s=0.2)
        results = await asyncio.gather(
            written.upsert({"d1": 33, "new": 36}),
            written.writer.delete(["d2", "nobody"]),
            written.upsert({"d3": 39}),
        )
        assert [counts(result) for result in results] == [(1, 1, 0, 0), (0, 0, 1, 1), (0, 1, 0, 0)]
        assert written.changes == [3]
        assert len({result.generation for result in results}) == 1

    asyncio.run(write())
    assert SearchIndex.open(index).payload(["d1", "d2"]) == [{"version": 33, "odd": True}, None]


def test_what_arrives_during_a_change_is_one_change_of_its_own(index: Path) -> None:
    async def write() -> None:
        written = Written(index)
        slow = written._commit

        def commit(writes: Sequence[Write], patience_s: float) -> list[Outcome]:
            time.sleep(0.2)
            return slow(writes, patience_s)

        written.queue._commit = commit
        first = asyncio.create_task(written.upsert({"a": 3}))
        await asyncio.sleep(0.1)
        await asyncio.gather(first, *(written.upsert({f"b{n}": 3 * n}) for n in range(5)))
        assert written.changes == [1, 5]

    asyncio.run(write())


def test_a_change_takes_no_more_rows_than_it_may_and_none_is_left(index: Path) -> None:
    async def write() -> None:
        written = Written(index, commit_rows=4, commit_wait_s=0.05)
        await asyncio.gather(*(written.upsert({f"a{n}": 3 * n}) for n in range(10)))
        assert written.changes == [4, 4, 2]
        await written.upsert({f"many{n}": 3 * n for n in range(9)})

    asyncio.run(write())
    assert len(SearchIndex.open(index)) == 10 + 10 + 9


def test_the_same_upsert_again_replaces(index: Path) -> None:
    async def write() -> None:
        written = Written(index)
        assert counts(await written.upsert({"a": 1, "b": 2})) == (2, 0, 0, 0)
        assert counts(await written.upsert({"a": 1, "b": 2})) == (0, 2, 0, 0)
        assert written.encoder.instructions == {"find it"}, "the index's own"

    asyncio.run(write())
    assert len(SearchIndex.open(index)) == 12


def test_vectors_of_another_model_are_not_written(index: Path) -> None:
    async def write() -> None:
        stray = NewDocument("stray", item=Item.of("other model"))
        with pytest.raises(NotReadyError, match="e2e2e2e2e2e2"):
            await Written(index).writer.upsert([document("new", 1), stray])

    asyncio.run(write())
    assert len(SearchIndex.open(index)) == 10


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (NewDocument("bad", item=Item.of("corrupt")), "'bad': the image cannot be decoded"),
        (NewDocument("bad"), "'bad': give either its content or its vectors"),
        (NewDocument("", item=Item.of("1")), "empty id"),
        (NewDocument("x" * 600, item=Item.of("1")), "at most 512"),
        (NewDocument("\ud800", item=Item.of("1")), "surrogate"),
        (NewDocument("d1", item=Item.of("1")), "'d1' occurs twice"),
        (document("bad", 1, version="one"), "'version' is a text, the index holds a number"),
        (document("bad", 1, odd=1), "'odd' is a number, the index holds a boolean"),
        (document("bad", 1, version=[1]), "'version' is a list of numbers"),
        (document("bad", 1, version={"of": 1}), "'version.of' crosses 'version'"),
        (document("bad", 1, source=3), "'source' is a number"),
        (document("bad", 1, what=b"bytes"), "holds bytes"),
        (document("bad", 1, what=2**70), "64 bits"),
        (document("bad", 1, what="\ud800"), "surrogate"),
        (document("bad", 1, **{"\ud800": 1}), "surrogate"),
        (document("bad", 1, what=["a", 1]), "different kinds"),
        (NewDocument("bad", vectors=EncodedQuery(unit((1, 8, 3), 1), None)), "8 x 3"),
        (NewDocument("bad", vectors=EncodedQuery(unit((1, 7, 16), 1), None)), "7 x 16"),
        (NewDocument("bad", vectors=EncodedQuery(unit((1, 8, 16), 1), None)), "it has none"),
        (
            NewDocument("bad", vectors=EncodedQuery(unit((1, 8, 16), 1), unit((1, 3), 1))),
            "fused vector of 24 numbers",
        ),
        (
            NewDocument("bad", vectors=EncodedQuery(2 * unit((1, 8, 16), 1), unit((1, 24), 1))),
            "norm 2",
        ),
        (
            NewDocument("bad", vectors=EncodedQuery(np.full((1, 8, 16), np.nan, np.float32), None)),
            "norm nan",
        ),
    ],
)
def test_a_bad_document_fails_its_own_request_by_name_and_no_other(
    index: Path, bad: NewDocument, says: str
) -> None:
    async def write() -> None:
        written = Written(index, commit_wait_s=0.2)
        refused, done = await asyncio.gather(
            written.writer.upsert([document("d1", 33), document("new", 2), bad]),
            written.upsert({"d2": 36}),
            return_exceptions=True,
        )
        assert isinstance(refused, UserError), refused
        assert says in str(refused)
        str(refused).encode()
        assert isinstance(done, WriteResult)
        assert counts(done) == (0, 1, 0, 0)

    asyncio.run(write())
    found = SearchIndex.open(index).payload(["d1", "d2", "new", "bad"])
    assert [p and p["version"] for p in found] == [1, 36, None, None]


def test_a_new_field_keeps_the_kind_that_its_first_document_gave_it(index: Path) -> None:
    async def write() -> None:
        written = Written(index, commit_wait_s=0.2)
        first, second, third = await asyncio.gather(
            written.writer.upsert([document("a", 3, price=1, tags=[])]),
            written.writer.upsert([document("b", 6, price="cheap")]),
            written.writer.upsert([document("c", 9, price=1.5, tags=["x"], when=None)]),
            return_exceptions=True,
        )
        assert isinstance(first, WriteResult)
        assert "'price' is a text, the index holds a number" in str(second)
        assert isinstance(third, WriteResult)
        with pytest.raises(UserError, match="list of texts"):
            await written.writer.upsert([document("d", 12, tags=[1])])

    asyncio.run(write())
    assert SearchIndex.open(index).ids({"price": 1.5}) == ["c"]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"ids": ["d1"], "filter": {"odd": True}}, {"filter": {}}, {"ids": [""]},
     {"filter": {"nmae": 1}}, {"filter": {"odd": {"is": 1}}}],
)  # fmt: skip
def test_a_deletion_that_does_not_say_what_is_refused(
    index: Path, arguments: dict[str, Any]
) -> None:
    async def write() -> None:
        written = Written(index)
        with pytest.raises(UserError):
            await written.writer.delete(**arguments)
        assert counts(await written.writer.delete(["d1", "d1"])) == (0, 0, 1, 0), "it goes on"

    asyncio.run(write())
    assert len(SearchIndex.open(index)) == 9


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Another process writes to the index until it is told to end."""
    code = (
        "import sys; from pathlib import Path; from rematch_ray.index.store import hold_lock\n"
        "with hold_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    await asyncio.to_thread(process.stdout.readline)
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait()


@pytest.mark.parametrize("num_shards", [1, 2])
def test_while_another_process_writes_a_write_waits_its_time_and_no_longer(
    num_shards: int, tmp_path: Path
) -> None:
    path = build(tmp_path, "index", {f"d{n}": n for n in range(10)}, num_shards)

    async def write() -> None:
        written = Written(path, lock_patience_s=0.6)
        async with locked(path) as other:
            started = time.monotonic()
            early = asyncio.create_task(written.upsert({"early": 3}))
            await asyncio.sleep(0.3)
            late = asyncio.create_task(written.upsert({"late": 6}))
            with pytest.raises(OverloadedError, match="another process") as refused:
                await early
            assert 0.5 < time.monotonic() - started < 0.85
            assert refused.value.code == "overloaded"
            assert str(path) not in str(refused.value)
            assert other.stdin is not None
            other.stdin.close()
            assert counts(await late) == (1, 0, 0, 0)

    asyncio.run(write())
    assert {"early", "late"} & set(SearchIndex.open(path).ids()) == {"late"}


def test_too_many_waiting_documents_are_refused_before_they_are_written(index: Path) -> None:
    async def write() -> None:
        written = Written(index, max_waiting_rows=3, commit_wait_s=0.2)
        results = await asyncio.gather(
            *(written.upsert({f"a{n}": 3 * n}) for n in range(5)), return_exceptions=True
        )
        refused = [r for r in results if isinstance(r, OverloadedError)]
        assert len(refused) == 2
        assert "at most 3" in str(refused[0])

    asyncio.run(write())
    assert len(SearchIndex.open(index)) == 13


def test_a_caller_that_has_gone_is_not_written_for_and_harms_nobody(index: Path) -> None:
    async def write() -> None:
        written = Written(index, commit_wait_s=0.1)
        gone = asyncio.create_task(written.upsert({"gone": 3}))
        stays = asyncio.create_task(written.upsert({"stays": 6}))
        await asyncio.sleep(0.02)
        gone.cancel()
        await stays

    asyncio.run(write())
    assert {"gone", "stays"} & set(SearchIndex.open(index).ids()) == {"stays"}


def test_a_failure_of_the_disk_reaches_the_callers_and_the_next_write_succeeds(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    async def write() -> None:
        written = Written(index)
        with monkeypatch.context() as broken:
            broken.setattr("rematch_ray.serve.commits.write_documents", full)
            with pytest.raises(OSError, match="No space"):
                await written.upsert({"a": 3})
        assert counts(await written.upsert({"a": 3})) == (1, 0, 0, 0)

    asyncio.run(write())


def test_no_more_documents_are_encoded_at_a_time_than_it_may(index: Path) -> None:
    async def write() -> None:
        written = Written(index, encode_ahead=3)
        await written.upsert({f"a{n}": 3 * n + 1 for n in range(12)})
        assert (written.encoder.most, written.encoder.encoded) == (3, 12)

    asyncio.run(write())


@pytest.mark.parametrize("num_shards", [1, 2])
def test_small_segments_are_merged_and_hits_stay_the_same(
    num_shards: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    documents = {f"d{n}": n for n in range(20)}
    path = build(tmp_path, "index", documents, num_shards)

    async def write() -> None:
        written = Written(path, merge_fan_in=4)
        for number in range(17):
            await written.upsert({f"a{number}": 100 + number})
            while written.merged[number:] == []:
                await asyncio.sleep(0.01)
        assert sum(written.merged) >= 12

    with caplog.at_level(logging.INFO, "rematch_ray.serve.commits"):
        asyncio.run(write())
    assert "merged 4 segments" in caplog.text
    found = SearchIndex.open(path)
    assert found.info()["segments"] <= num_shards * 7
    documents |= {f"a{number}": 100 + number for number in range(17)}
    assert answers(found) == answers(
        SearchIndex.open(build(tmp_path, "anew", documents, num_shards))
    )


def test_merging_waits_while_writes_do_unless_segments_pile_up_beyond_measure(
    index: Path,
) -> None:
    writer = Written(index, merge_fan_in=2, most_segments=5).index
    for number in range(3):
        writer.commit([Write(delete=(f"d{number}",))])
    asyncio.run(Written(index).upsert({"a": 3}))
    asyncio.run(Written(index).upsert({"b": 6}))
    writer.commit([Write(delete=("nobody",))])
    assert writer.form.segments == 3
    assert writer.merge(is_pressed=True) == 0
    for number in range(3):
        asyncio.run(Written(index).upsert({f"c{number}": 3 * number}))
    writer.commit([Write(delete=("nobody",))])
    assert writer.merge(is_pressed=True) == 5


def test_a_merge_that_fails_does_not_stop_the_writing(
    index: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    async def write() -> None:
        monkeypatch.setattr("rematch_ray.serve.commits.merge_segments", fail)
        written = Written(index, merge_fan_in=2)
        for number in range(3):
            await written.upsert({f"a{number}": 3 * number})

    asyncio.run(write())
    assert "segments were not merged" in caplog.text
    assert len(SearchIndex.open(index)) == 13


def test_a_writer_that_starts_anew_goes_on_where_the_last_one_was(index: Path) -> None:
    asyncio.run(Written(index).upsert({"a": 3}))
    asyncio.run(Written(index).upsert({"a": 6, "b": 9}))
    assert [p and p["version"] for p in SearchIndex.open(index).payload(["a", "b"])] == [6, 9]


def test_an_index_that_was_replaced_by_one_of_another_model_takes_nothing(
    index: Path, tmp_path: Path, edit: Callable[..., Path]
) -> None:
    async def write() -> None:
        written = Written(index)
        other = embeddings_of(tmp_path / "other", {"o": 1})
        edit(other, identity={"digest": "e2" * 32, "ladder": ["1x1", "4x8"], "name": "other"})
        build_index(other, index)
        with pytest.raises(UserError, match="does not fit this index"):
            await written.upsert({"a": 3})

    asyncio.run(write())
    assert SearchIndex.open(index).ids() == ["o"]


@pytest.fixture
def edit() -> Callable[..., Path]:
    from tests.index.test_changes import edit

    return edit


def test_an_index_without_fused_vectors_takes_documents_with_and_without(tmp_path: Path) -> None:
    source = write_embeddings(tmp_path / "source", unit((3, 8, 16), 1), None)
    build_index(source, tmp_path / "index")

    async def write() -> None:
        written = Written(tmp_path / "index")
        bare = EncodedQuery(unit((1, 8, 16), 7), None)
        await written.writer.upsert([NewDocument("bare", vectors=bare)])
        await written.upsert({"full": 3})

    asyncio.run(write())
    assert len(SearchIndex.open(tmp_path / "index")) == 5
