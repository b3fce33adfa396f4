"""What negatives are mined from: documents collected, embedded, indexed, and known by index row.

The rows' own documents, or a corpus with an index of it or without, and beside it the positives
that the corpus lacks. Top floor.
"""

import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rematch_ray.data.readers.parquet import NAME as OWN_FORMAT
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.index.build import build_index
from rematch_ray.index.generation import CURRENT_FILE
from rematch_ray.index.mining.documents import Documents, ItemStore
from rematch_ray.index.mining.pinned import PinnedIndex
from rematch_ray.index.mining.references import References
from rematch_ray.workloads.embed import embed
from rematch_ray.workloads.mining_inputs import Inputs
from rematch_ray.workloads.mining_runs import run_tasks, save_array, say
from rematch_ray.workloads.mining_tasks import (
    CollectCorpus,
    CollectDocuments,
    Galleries,
    Workspace,
)


def make_galleries(inputs: Inputs, workspace: Workspace) -> Galleries:
    """Embed and index documents, and say what is known of every row of the index."""
    documents = workspace.root / "documents"
    if inputs.corpus is None:
        _collect(inputs, workspace, _first_of_each(inputs, workspace), "items", "documents")
    else:
        tasks = [
            (CollectCorpus(unit, inputs.model.max_image_pixels, file), file)
            for number, unit in enumerate(inputs.corpus_units)
            for file in [workspace.items(number)]
        ]
        run_tasks("read", tasks, inputs.settings.cpus_per_task, what="row groups of the corpus")
    index = inputs.index
    if index is None:
        data, vectors = inputs.corpus or [documents], workspace.root / "vectors"
        index = _build(inputs, data, vectors, workspace.root / "index")
    _align(workspace, "items", index)
    outside = None
    if inputs.corpus is not None:
        outside = _make_outside(inputs, workspace)
    return Galleries(index, outside, workspace, inputs.miner, uuid.uuid4().hex)


def _make_outside(inputs: Inputs, workspace: Workspace) -> PinnedIndex | None:
    """Embed and index positives that the corpus lacks: their scores are needed all the same."""
    known = Documents(ItemStore(workspace.root / "items").lines())
    chosen = _first_of_each(inputs, workspace, lacking=known)
    if not any(len(places) for places in chosen):
        return None
    _collect(inputs, workspace, chosen, "outside-items", "outside-documents")
    folder, vectors = workspace.root / "outside-documents", workspace.root / "outside-vectors"
    index = _build(inputs, [folder], vectors, workspace.root / "outside-index")
    _align(workspace, "outside", index, store="outside-items")
    return index


def _first_of_each(
    inputs: Inputs, workspace: Workspace, *, lacking: Documents | None = None
) -> list[np.ndarray]:
    """Where each document of the rows stands first, per row group.

    Args:
        inputs: the job.
        workspace: holds the scans.
        lacking: take only positives, and only those that are not here.
    """
    seen: set[int] = set()
    places = []
    for number in range(len(inputs.units)):
        column = pq.read_table(workspace.scan(number), columns=["documents"])["documents"]
        named = column.combine_chunks().flatten()
        references = References(
            *(named.field(name).to_numpy() for name in ("id_key", "source_key", "content"))
        )
        wanted = _flags(named, "readable")
        if lacking is not None:
            wanted &= _flags(named, "is_positive")
        # one number for id and source; both are hashes already
        keys = references.id_key ^ (references.source_key << 1)
        taken = []
        for place in np.flatnonzero(wanted).tolist():
            if keys[place] not in seen:
                seen.add(int(keys[place]))
                taken.append(place)
        chosen = np.array(taken, np.int64)
        if lacking is not None:
            found = lacking.find(references[chosen])
            chosen = chosen[np.array([not len(rows) for rows in found], dtype=bool)]
        places.append(chosen)
    return places


def _flags(named: pa.StructArray, field: str) -> np.ndarray:
    return named.field(field).to_numpy(zero_copy_only=False).astype(bool)


def _collect(
    inputs: Inputs, workspace: Workspace, chosen: Sequence[np.ndarray], store: str, folder: str
) -> None:
    tasks = []
    for number, unit in enumerate(inputs.units):
        items = workspace.items(number, store=store)
        documents = workspace.documents(number, folder=folder)
        task = CollectDocuments(unit, number, workspace, chosen[number], documents, items)
        tasks.append((task, items))
    run_tasks("collected", tasks, inputs.settings.cpus_per_task)


def _build(inputs: Inputs, data: Sequence[Path], vectors: Path, index: Path) -> PinnedIndex:
    # a corpus has been listed as our own Parquet, and is not to be taken for anything else here
    own = ReaderSettings(format=OWN_FORMAT)
    embed(model=inputs.export, data=data, out=vectors, settings=inputs.settings.embed, reader=own)
    if not (index / CURRENT_FILE).exists():
        info = build_index(vectors, index)
        say(f"indexed {info.documents} documents")
    return PinnedIndex.of(index)


def _align(workspace: Workspace, gallery: str, index: PinnedIndex, *, store: str = "items") -> None:
    if not workspace.lines(gallery).exists():
        items, generation = ItemStore(workspace.root / store), index.open()
        save_array(workspace.lines(gallery), items.documents(generation.ids(), generation.live))
