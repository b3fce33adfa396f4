"""Builds an index from embedding shards: one segment, one generation. Middle floor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rematch_ray.errors import UserError
from rematch_ray.index.coarse.keys import choose_keys
from rematch_ray.index.coarse.training import CoarseWriter
from rematch_ray.index.generation import CURRENT_FILE, generation_file, read_current
from rematch_ray.index.lexical.settings import LexicalSettings, choose_lexical
from rematch_ray.index.manifest import GenerationManifest, TrainedEntry
from rematch_ray.index.maxsim_int8 import MAX_DIM
from rematch_ray.index.shards import EmbeddingShards
from rematch_ray.index.store import (
    IndexInfo,
    add_segment,
    now,
    publish,
    segment_name,
    software,
    writing,
)
from rematch_ray.scoring.budget import Ladder


def build_index(
    embeddings: str | Path | EmbeddingShards,
    out: str | Path,
    *,
    ladder: Ladder | Sequence[str] | None = None,
    coarse: str | None = None,
    coarse_keys: Sequence[str] | None = None,
    coarse_kind: str = "auto",
    originals: bool = True,
    lexical: Sequence[str] | LexicalSettings | None = None,
    batch_rows: int = 1024,
) -> IndexInfo:
    """Builds an index from embedding shards, or replaces the documents of one, in bounded memory.

    Args:
        embeddings: embedding directory of the document side, or one that is open.
        out: index directory, made when absent; an index there keeps answering until the end.
        ladder: rungs to store planes for; None takes the model's.
        coarse: default coarse choice, of `COARSE_CHOICES`; None takes `fused` where there is a
            fused vector.
        coarse_keys: lists to store, of `COARSE_KEYS`; None stores those of the fused and the first
            vector, and what `coarse` needs.
        coarse_kind: of `COARSE_KINDS`; `auto` goes by size.
        originals: whether to keep float16 vectors beside the 8-bit ones: two thirds of the bytes,
            and what makes scores exact.
        lexical: payload fields whose texts are indexed for hybrid search, or settings; None takes
            `text` where there is such a field, and an empty sequence nothing.
        batch_rows: rows read at once.

    Returns:
        What was published.

    Raises:
        UserError: not an embedding directory, query-side embeddings, too few vectors for the
            ladder or too long ones, repeated ids, a lexical field without text, `out` holding
            something else, or another writer at work. Nothing half-written is left.
    """
    out = Path(out)
    if isinstance(embeddings, EmbeddingShards):
        shards = embeddings
    else:
        shards = EmbeddingShards.open(embeddings)
    form = choose_form(
        shards,
        ladder=ladder,
        coarse=coarse,
        coarse_keys=coarse_keys,
        coarse_kind=coarse_kind,
        originals=originals,
        lexical=lexical,
    )
    with writing(out) as number:
        return publish(out, write_generation(out, number, shards, form, batch_rows=batch_rows))


@dataclass(frozen=True)
class IndexForm:
    """How an index is to be built.

    Args:
        ladder: rungs as text.
        coarse_keys: lists that segments get.
        default_coarse: coarse choice when a search names none.
        coarse_kind: as asked for.
        originals: whether float16 vectors are kept beside the 8-bit ones.
        lexical: which texts are indexed, or None.
    """

    ladder: tuple[str, ...]
    coarse_keys: tuple[str, ...]
    default_coarse: str
    coarse_kind: str
    originals: bool
    lexical: LexicalSettings | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        lexical = None if self.lexical is None else self.lexical.stored()
        made: dict[str, Any] = json.loads(json.dumps({**self.__dict__, "lexical": lexical}))
        return made


def choose_form(
    shards: EmbeddingShards,
    *,
    ladder: Ladder | Sequence[str] | None = None,
    coarse: str | None = None,
    coarse_keys: Sequence[str] | None = None,
    coarse_kind: str = "auto",
    originals: bool = True,
    lexical: Sequence[str] | LexicalSettings | None = None,
) -> IndexForm:
    """What a build of these embeddings makes; arguments and errors as of `build_index`."""
    rungs = _choose_ladder(shards, ladder)
    _refuse_long_vectors(shards)
    keys, default_coarse = choose_keys(coarse_keys, coarse, has_fused=bool(shards.fused_dim))
    texts = choose_lexical(lexical, shards.payload_fields())
    if shards.num_rows == 0:
        raise UserError(f"{shards.path} holds no rows: embed at least one document")
    return IndexForm(
        ladder=tuple(rungs.texts()),
        coarse_keys=keys,
        default_coarse=default_coarse,
        coarse_kind=coarse_kind,
        originals=originals,
        lexical=texts,
    )


def write_generation(
    out: Path,
    number: int,
    shards: EmbeddingShards,
    form: IndexForm,
    *,
    batch_rows: int,
    source: Mapping[str, Any] | None = None,
    lists: CoarseWriter | None = None,
) -> GenerationManifest:
    """Writes all rows as one segment, and gives the generation that it makes; publishes nothing.

    Args:
        out: index directory, its lock held.
        number: of the generation.
        shards: the rows.
        form: how the index is to be built.
        batch_rows: rows read at once.
        source: what the manifest records of where the rows come from.
        lists: what writes the coarse lists; None trains what the index before did not.
    """
    if lists is None:
        trained = _trained_before(out, shards)
        lists = CoarseWriter(out, keys=form.coarse_keys, kind=form.coarse_kind, trained=trained)
    entry = add_segment(
        out,
        segment_name(number),
        shards.batches(batch_rows),
        rows=shards.num_rows,
        dim=shards.dim,
        fused_dim=shards.fused_dim,
        planes=Ladder.parse(form.ladder).planes(),
        fields=shards.payload_fields(),
        coarse=lists,
        originals=form.originals,
        lexical=form.lexical,
    )
    return GenerationManifest(
        generation=number,
        created=now(),
        identity=shards.identity,
        model_path=shards.manifest.get("model_path"),
        ladder=form.ladder,
        side=shards.side,
        instruction=shards.manifest.get("instruction"),
        dim=shards.dim,
        fused_dim=shards.fused_dim,
        default_coarse=form.default_coarse,
        segments=(entry,),
        calibration=None,
        software=software(),
        coarse_kind=lists.kind,
        coarse_trained=lists.trained,
        lexical=None if form.lexical is None else form.lexical.stored(),
        source=source,
        built=number,
    )


def _choose_ladder(shards: EmbeddingShards, ladder: Ladder | Sequence[str] | None) -> Ladder:
    if shards.side != "document":
        raise UserError(
            f"{shards.path} holds embeddings of the {shards.side} side: an index needs the "
            "document side, run 'rematch-ray embed --side document'"
        )
    if ladder is None:
        ladder = _rungs_within(shards)
    rungs = ladder if isinstance(ladder, Ladder) else Ladder.parse(ladder)
    if rungs.num_document_vectors > shards.num_vectors:
        raise UserError(
            f"the ladder ends at {rungs.top}, but {shards.path} holds {shards.num_vectors} vectors "
            "per document: give a shorter ladder or embed with a model that makes more"
        )
    return rungs


def _refuse_long_vectors(shards: EmbeddingShards) -> None:
    for what, dim in (("vectors", shards.dim), ("fused vectors", shards.fused_dim or 0)):
        if dim > MAX_DIM:
            raise UserError(
                f"{shards.path} holds {what} of {dim} numbers, an index takes at most {MAX_DIM}: "
                "embed with a model whose embedding_dim and fused_dim are no larger"
            )


def _rungs_within(shards: EmbeddingShards) -> Ladder:
    """The model's ladder as far as the stored prefix of its vectors reaches."""
    texts = shards.identity.get("ladder")
    if texts is None:
        raise UserError(f"{shards.path} names no ladder in its identity: give one")
    rungs = Ladder.parse(texts).rungs
    within = tuple(rung for rung in rungs if rung.r_d <= shards.num_vectors)
    if not within:
        raise UserError(
            f"{shards.path} holds {shards.num_vectors} vectors per document, fewer than any rung "
            f"of the model's ladder ({', '.join(map(str, rungs))}): embed again with num_vectors "
            "one of them"
        )
    return Ladder(within)


def _trained_before(out: Path, shards: EmbeddingShards) -> Mapping[str, TrainedEntry]:
    """What an index that is replaced trained on vectors of the same model."""
    if not (out / CURRENT_FILE).is_file():
        return {}
    manifest = GenerationManifest.read(generation_file(out, read_current(out)))
    same = manifest.identity.get("digest") == shards.identity.get("digest")
    return manifest.coarse_trained if same else {}
