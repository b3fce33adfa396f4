"""Builds an index from embedding shards: one segment, one generation. Middle floor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rematch_ray.errors import UserError
from rematch_ray.index.coarse import COARSE_CHOICES, CoarseKind
from rematch_ray.index.manifest import GenerationManifest
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
    embeddings: str | Path,
    out: str | Path,
    *,
    ladder: Ladder | Sequence[str] | None = None,
    coarse: str | None = None,
    coarse_kind: CoarseKind = "auto",
    batch_rows: int = 1024,
) -> IndexInfo:
    """Builds an index from embedding shards, or replaces the documents of one, in bounded memory.

    Args:
        embeddings: embedding directory of the document side.
        out: index directory, made when absent; an index there keeps answering until the end.
        ladder: rungs to store planes for; None takes the model's.
        coarse: default coarse choice (`fused`, `first`, `both`); None takes `fused` where there is
            a fused vector.
        coarse_kind: `flat`, `ivf` or `auto`: by size.
        batch_rows: rows read at once.

    Returns:
        What was published.

    Raises:
        UserError: not an embedding directory, query-side embeddings, too few vectors for the
            ladder, repeated ids, `out` holding something else, or another writer at work. Nothing
            half-written is left.
    """
    out = Path(out)
    shards = EmbeddingShards.open(embeddings)
    rungs = _choose_ladder(shards, ladder)
    default_coarse = _choose_coarse(shards, coarse)
    if shards.num_rows == 0:
        raise UserError(f"{embeddings} holds no rows: embed at least one document")
    with writing(out) as number:
        entry = add_segment(
            out,
            segment_name(number),
            shards.batches(batch_rows),
            rows=shards.num_rows,
            dim=shards.dim,
            fused_dim=shards.fused_dim,
            planes=rungs.planes(),
            fields=shards.payload_fields(),
            coarse_kind=coarse_kind,
        )
        manifest = GenerationManifest(
            generation=number,
            created=now(),
            identity=shards.identity,
            model_path=shards.manifest.get("model_path"),
            ladder=tuple(rungs.texts()),
            side=shards.side,
            instruction=shards.manifest.get("instruction"),
            dim=shards.dim,
            fused_dim=shards.fused_dim,
            default_coarse=default_coarse,
            segments=(entry,),
            calibration=None,
            software=software(),
            built=number,
        )
        return publish(out, manifest)


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


def _choose_coarse(shards: EmbeddingShards, coarse: str | None) -> str:
    allowed = COARSE_CHOICES if shards.fused_dim else ("first",)
    choice = coarse or allowed[0]
    if choice not in allowed:
        raise UserError(f"coarse '{choice}' does not exist here; allowed: {', '.join(allowed)}")
    return choice
