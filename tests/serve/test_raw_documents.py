"""The matching head over raw documents: what it reads, what it does not find, what it refuses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rematch_ray.data.item import Item
from rematch_ray.errors import UserError
from rematch_ray.index.build import build_index
from rematch_ray.index.hits import Hit
from rematch_ray.model.embedder import Embedder
from rematch_ray.serve.backend import Rerank, SearchPlan
from rematch_ray.serve.encoder import match_raw
from rematch_ray.serve.matching import reordered
from rematch_ray.serve.media import MediaRoots
from rematch_ray.serve.raw_documents import raw_documents
from tests.serve.conftest import png
from tests.serve.local import StubEncoder, embeddings, query, router_over, shards_of

ITEM = Item.of("an otter")


def hit(document_id: str, **payload: Any) -> Hit:
    return Hit(document_id, 0.5, payload)


def test_an_image_is_read_from_the_media_roots_and_a_text_from_the_payload(media: Path) -> None:
    (media.parent / "secret.png").write_bytes(png())
    found = raw_documents(
        [
            hit("image", media="0.png", text="a caption"),
            hit("uri", uri=str(media / "1.png")),
            hit("text", text="an otter", media=None),
            hit("gone", media="9.png", text="a caption"),
            hit("outside", media=str(media.parent / "secret.png")),
            hit("nothing", name="no reference"),
        ],
        MediaRoots([media]),
    )
    image, uri, text, *missing = found
    assert image is not None and uri is not None and text is not None
    assert (image.images[0].image, image.text) == (png(), "")
    assert uri.images[0].image == png()
    assert (text.text, text.images) == ("an otter", ())
    # words of another kind than what was embedded would be another document
    assert missing == [None, None, None]


def test_hits_without_an_answer_keep_their_place_and_score() -> None:
    hits = [Hit(name, score, {}) for name, score in (("a", 0.9), ("b", 0.8), ("c", 0.7))]
    after = reordered(hits, [-20.0, None, 20.0], 0.01)
    assert [(one.id, round(one.score, 6)) for one in after] == [("c", 0.9), ("b", 0.8), ("a", 0.7)]
    after = reordered(hits, [None, -10.0, 10.0], 0.01)
    assert [one.id for one in after] == ["a", "c", "b"]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    payloads = [{"text": f"text {n}"} if n % 4 else {"uri": "nowhere.png"} for n in range(60)]
    build_index(embeddings(tmp_path / "first", 60, 1, payloads), tmp_path / "index")
    return tmp_path / "index"


async def test_raw_documents_of_the_best_are_matched_and_the_rest_stays(index: Path) -> None:
    encoder = StubEncoder(lambda place: 100.0 * place)
    router = router_over(shards_of(index, 1), encoder=encoder)
    plain = (await router.search(query(), SearchPlan(budget="4x8", top_k=20))).result.hits
    plan = SearchPlan(budget="4x8", top_k=20, rerank=Rerank(top_n=10, raw=True), item=ITEM)
    answer = await router.search(query(), plan)
    best, lost = plain[:10], [one.id for one in plain[:10] if not one.payload.get("text")]
    kept = [one for one in best if one.id not in lost]
    assert 0 < len(lost) < 9
    assert encoder.read == [(one.id, one.payload["text"], 0) for one in kept]
    assert answer.rerank == {
        "top_n": 10, "lambda": 0.01, "ms": answer.rerank["ms"], "raw": True, "not_found": lost,
    }  # fmt: skip
    found = answer.result.hits
    assert found[10:] == plain[10:]
    for place, one in enumerate(best):
        if one.id in lost:
            assert found[place] == one
    # the stub is surest of the last
    assert [one.id for one in found[:10] if one.id not in lost] == [one.id for one in kept[::-1]]
    assert encoder.matched == 0
    second = await router.search(query(), replace(plan, top_k=3, offset=2))
    assert second.result.hits == found[2:5]


async def test_without_a_raw_query_nothing_raw_is_matched(index: Path) -> None:
    router = router_over(shards_of(index, 1))
    with pytest.raises(UserError, match="raw query"):
        await router.search(query(), SearchPlan(rerank=Rerank(raw=True)))


def test_the_encoder_reads_each_document_and_leaves_out_what_is_broken(
    pair: Any, device: str
) -> None:
    model = Embedder.from_pretrained(pair.export, device=device)
    broken = Item.of(b"no image", id="broken")
    documents = [Item.of("a boat", id="one"), broken, Item.of(png(32, 32, "blue"), id="two")]
    first, none, second = match_raw(model, Item.of("an otter"), None, documents)
    assert none is None and first is not None and second is not None and first != second
    [alone] = match_raw(model, Item.of("an otter"), None, documents[:1])
    assert alone == pytest.approx(first, abs=1e-4)
    [told] = match_raw(model, Item.of("an otter"), "find the other boat", documents[:1])
    [indexed] = match_raw(model, Item.of("an otter"), None, documents[:1], "index these boats")
    assert len({round(alone, 5), round(told, 5), round(indexed, 5)}) == 3
    assert match_raw(model, Item.of("an otter"), None, []) == []
    assert match_raw(model, Item.of("an otter"), None, [broken]) == [None]
    with pytest.raises(UserError):
        match_raw(model, broken, None, documents)
