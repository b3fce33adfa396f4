"""Queries and documents of different lengths, with texts and images, and a third form of matching.

`separate_answers` forwards every view of every triplet alone: slow, without any mask of segments
but its own, and what the packed and the shared form have to equal.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rematch_ray.data.collate import CONTENT, HEADER
from rematch_ray.data.prompts import PromptTokens
from rematch_ray.data.schema import Item
from rematch_ray.losses.matching import VIEWS, view_labels
from rematch_ray.model.backbone import Backbone
from rematch_ray.model.deep_features import DeepFeatures, join_features
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.embeddings import Encoded
from rematch_ray.model.matcher import Matcher
from rematch_ray.model.raw_rows import RawRows
from tests.tiny import png

QUERIES = [
    Item.of("a red circle", id="q0"),
    Item.of(png("red", 32, 48), "like this but blue", id="q1"),
    Item.of("a", id="q2"),
]
DOCUMENTS = [
    Item.of(png("red", 48, 64), id="d0"),
    Item.of("a very long text about a bar left of a circle", id="d1"),
    Item.of("short", png(), id="d2"),
    Item.of("a blue bar", id="d3"),
    Item.of(png("blue"), "and words behind it", id="d4"),
]
# a document may serve several queries, in either slot, as positive of one and hard negative of
# another; a query may have several triplets
ROWS = torch.tensor([0, 1, 2, 0])
FIRST = torch.tensor([0, 3, 2, 4])
SECOND = torch.tensor([1, 0, 0, 3])
LABELS = view_labels(torch.tensor([0, 1, 0, 1]))

Form = Callable[[Backbone, Matcher, PromptTokens, RawRows, RawRows, RawRows], Tensor]


def encoded(model: Embedder, *, record: bool) -> tuple[Encoded, Encoded]:
    """All queries and all documents, on the model's device."""
    queries = [model.row_encoder.encode(item, "query") for item in QUERIES]
    documents = [model.row_encoder.encode(item, "document") for item in DOCUMENTS]
    query_batch = model.batch(queries, "query").to(model.device)
    document_batch = model.batch(documents, "document").to(model.device)
    return (
        model.encode_rows(query_batch, "query", record=record),
        model.encode_rows(document_batch, "document", record=record),
    )


def answer(model: Embedder, form: Form, queries: RawRows, documents: RawRows) -> Tensor:
    """(m, 8, V) logits of the triplets."""
    assert model.matcher is not None
    rows, first, second = (some.to(model.device) for some in (ROWS, FIRST, SECOND))
    return form(
        model.backbone,
        model.matcher,
        model.row_encoder.prompt,
        queries.take(rows),
        documents.take(first),
        documents.take(second),
    )


def separate_answers(
    backbone: Backbone,
    matcher: Matcher,
    prompt: PromptTokens,
    query: RawRows,
    first: RawRows,
    second: RawRows,
) -> Tensor:
    """(m, 8, V) logits, each from a forward pass that holds nothing but its view."""
    each = [
        one_view(backbone, matcher, prompt, query, (first, second), index, view)
        for index in range(len(query))
        for view in range(len(VIEWS))
    ]
    return torch.stack(each).unflatten(0, (len(query), len(VIEWS)))


def one_view(
    backbone: Backbone,
    matcher: Matcher,
    prompt: PromptTokens,
    query: RawRows,
    documents: tuple[RawRows, RawRows],
    index: int,
    view: int,
) -> Tensor:
    """The answer's logits of one view of one triplet: `[P][I][query view][document view][A]`.

    Every token stands where the packed form puts it.
    """
    table = backbone.word_embeddings
    device = table.weight.device
    query_view, slot, document_view = VIEWS[view]
    start = len(prompt.header) + prompt.template.match_gap
    pieces: list[tuple[str, Tensor, Tensor]] = []
    features: list[tuple[DeepFeatures | None, Tensor]] = []

    def add(name: str, embeds: Tensor, positions: Tensor, deep: DeepFeatures | None = None) -> None:
        pieces.append((name, embeds, positions.to(device).expand(3, -1)))
        features.append((deep, embeds[None]))

    def words(ids: list[int]) -> Tensor:
        return table(torch.tensor(ids, device=device))

    add("P", *part(query, index, HEADER))
    length = len(prompt.match_instruction)
    add("I", words(prompt.match_instruction), len(prompt.header) + torch.arange(length))
    ends = []
    for name, rows, is_vector, role in (
        ("q", query, query_view, 0),
        ("d", documents[slot], document_view, 1),
    ):
        if is_vector:
            embeds = matcher.z(rows.fused[index], role=role)[None]
            positions, deep = torch.tensor([[start]]).expand(3, -1), None
        else:
            embeds, positions, deep = part(rows, index, CONTENT)
        add(name, embeds, positions, deep)
        ends.append(int(positions.max()) + 1)
    add("A", words(prompt.answer), max(ends) + torch.arange(len(prompt.answer)))

    names = [name for name, embeds, _ in pieces for _ in range(len(embeds))]
    length = len(names)
    mask = torch.zeros(1, 1, length, length, dtype=torch.bool)
    for row in range(length):
        for column in range(row + 1):
            seen = names[row] == "A" or names[column] in ("P", names[row])
            mask[0, 0, row, column] = seen
    inputs = torch.cat([embeds for _, embeds, _ in pieces])[None]
    positions = torch.cat([positions for _, _, positions in pieces], dim=1)[:, None]
    deep = join_features(features, dim=1)
    return backbone.logits(backbone.decode(inputs, positions, mask.to(device), deep=deep)[0, -1])


def part(rows: RawRows, index: int, segment: int) -> tuple[Tensor, Tensor, DeepFeatures | None]:
    """Raw embeddings (n, H), positions (3, n) and deep features of one segment of one item."""
    kept = rows.segment[index] == segment
    assert rows.inputs_embeds is not None
    deep = rows.deep and DeepFeatures(rows.deep.tokens[index : index + 1, kept], rows.deep.layers)
    return rows.inputs_embeds[index, kept], rows.position_ids[:, index, kept], deep
