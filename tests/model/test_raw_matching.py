"""The matching answer over raw items: that of the packed form, whoever shares the forward pass."""

import pytest
import torch

from rematch_ray.data.schema import Item
from rematch_ray.errors import UserError
from rematch_ray.losses.matching import VIEWS, yes_log_odds
from rematch_ray.model.answers import packed_answers
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.raw_matching import raw_log_odds
from tests.tiny import png

QUERY = Item.of(png("red", 32, 48), "like this but blue", id="q")
DOCUMENTS = [
    Item.of(png("red", 48, 64), id="d0"),
    Item.of("a very long text about a bar left of a circle", id="d1"),
    Item.of("short", png(), id="d2"),
    Item.of("a blue bar", id="d3"),
    Item.of(png("blue"), "and words behind it", id="d4"),
]


def test_answers_are_those_of_the_packed_form_one_document_at_a_time(embedder: Embedder) -> None:
    encode = embedder.row_encoder.encode
    query, rows = encode(QUERY, "query"), [encode(item, "document") for item in DOCUMENTS]
    prompt, matcher = embedder.row_encoder.prompt, embedder.matcher
    assert matcher is not None
    expected = []
    with torch.inference_mode():
        asked = embedder.encode_rows(embedder.batch([query], "query"), "query").raw_rows()
        for row in rows:
            batch = embedder.batch([row], "document")
            one = embedder.encode_rows(batch, "document").raw_rows()
            logits = packed_answers(embedder.backbone, matcher, prompt, asked, one, one)
            view = logits[0, VIEWS.index((0, 0, 0))]
            expected.append(float(yes_log_odds(view, yes_id=prompt.yes, no_id=prompt.no)))
    for count in (1, 2, 4, 5):
        for pairs in (1, 2, 8):
            found = raw_log_odds(embedder, query, rows[:count], pairs=pairs).tolist()
            assert found == pytest.approx(expected[:count], abs=1e-4)
    assert len({round(odds, 3) for odds in expected}) == len(expected)
    assert raw_log_odds(embedder, query, []).shape == (0,)


def test_a_model_without_a_fused_vector_says_so(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = embedder.row_encoder.encode(QUERY, "query")
    monkeypatch.setattr(embedder, "matcher", None)
    with pytest.raises(UserError, match="without a fused vector"):
        raw_log_odds(embedder, row, [row])
