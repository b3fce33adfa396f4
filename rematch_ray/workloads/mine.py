"""Hard-negative mining: training rows -> the same rows with what ranks high and is not right.

Rows are scanned, queries and documents embedded and indexed by the jobs that do so, then every row
group is searched and written by a task of its own. What is finished is not done again after an
interruption; the output appears at once, when all of it is. Top floor.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rematch_ray.config import MineSettings
from rematch_ray.errors import UserError
from rematch_ray.index.mining.rows import PROBLEM_SCHEMA, links_of
from rematch_ray.index.query_shards import id_ranges
from rematch_ray.workloads.embed import embed, embed_bundles
from rematch_ray.workloads.mining_galleries import make_galleries
from rematch_ray.workloads.mining_inputs import Inputs, read_inputs
from rematch_ray.workloads.mining_job import (
    UNREADABLE,
    hold_workspace,
    publish,
    read_finished,
    remove_workspace,
)
from rematch_ray.workloads.mining_runs import run_tasks, save_array, say
from rematch_ray.workloads.mining_tasks import (
    ITEMS_KEY,
    Galleries,
    MineUnit,
    ScanUnit,
    Workspace,
    query_id,
    write_whole,
)
from rematch_ray.workloads.runtime import Bundle, connect

REASONS_SHOWN = 3


def mine(
    *,
    model: str | Path,
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    corpus: str | Path | Sequence[str | Path] | None = None,
    index: str | Path | None = None,
    settings: MineSettings | None = None,
) -> dict[str, Any]:
    """Write training rows again with mined hard negatives.

    Args:
        model: an export or a run directory: its embedder finds the negatives.
        data: Parquet files of Samples, or directories of them; one or several.
        out: directory to write; finished rows of the same job there are kept.
        corpus: Parquet of Items to mine from; None = all documents of the rows.
        index: an index of the corpus, embedded by the same model; None = one is built.
        settings: what is taken and how it is searched.

    Returns:
        Counts, paths and timing.

    Raises:
        UserError: model, data, corpus, index or output do not fit together, or too many items
            cannot be read.
    """
    started = time.monotonic()
    inputs = read_inputs(model, data, corpus, index, settings or MineSettings())
    target, job = Path(out).expanduser().absolute().resolve(), inputs.job()
    if (finished := read_finished(target, job)) is not None:
        remove_workspace(target)
        say(f"{target} holds these rows already ({finished['rows']} rows)")
        return {**_summary(target, finished), "seconds": 0.0, "skipped": True}
    with hold_workspace(target, job) as workspace:
        task = Bundle("mining task", inputs.settings.cpus_per_task, key="cpus_per_task")
        # one after the other, so each must fit alone
        with connect(embed_bundles(inputs.settings.embed)), connect([task]):
            _scan(inputs, workspace)
            galleries = make_galleries(inputs, workspace)
            _embed_queries(inputs, workspace)
            _mine(inputs, workspace, galleries)
        unreadable = _unreadable(inputs, workspace)
        manifest = {
            **_count(inputs, workspace),
            "unreadable": len(unreadable),
            "model_path": str(inputs.export),
            "data": sorted({unit.path for unit in inputs.units}),
            "job": job.to_json(),
        }
        publish(workspace, target, manifest, unreadable)
    seconds = round(time.monotonic() - started, 1)
    say(_closing_line(manifest, seconds))
    return {**_summary(target, manifest), "seconds": seconds, "skipped": False}


def _scan(inputs: Inputs, workspace: Workspace) -> None:
    """Learn what every row names, and refuse data of which too much cannot be read."""
    limit, instructions = inputs.model.max_image_pixels, inputs.model.instructions
    tasks = [
        (ScanUnit(unit, number, workspace, limit, instructions), workspace.scan(number))
        for number, unit in enumerate(inputs.units)
    ]
    run_tasks("scanned", tasks, inputs.settings.cpus_per_task)
    scans = [workspace.scan(number) for number in range(len(inputs.units))]
    items = sum(int(pq.read_schema(scan).metadata[ITEMS_KEY]) for scan in scans)
    bad = _problems(inputs, workspace)
    if len(bad) > inputs.settings.embed.max_bad_share * items:
        file = workspace.root / UNREADABLE
        write_whole(file, "".join(json.dumps(entry) + "\n" for entry in bad))
        reasons = "; ".join(f"{x['where']}: {x['reason']}" for x in bad[:REASONS_SHOWN])
        raise UserError(
            f"{len(bad)} of {items} items cannot be read, more than embed.max_bad_share "
            f"{inputs.settings.embed.max_bad_share:g} allows ({reasons}); all are in {file}"
        )
    if not workspace.links.exists():
        save_array(workspace.links, links_of(pq.read_table(scan) for scan in scans))


def _embed_queries(inputs: Inputs, workspace: Workspace) -> None:
    """Embed one query per row; each has its instruction before its parts already."""
    embed(
        model=inputs.export,
        data=workspace.root / "queries",
        out=workspace.root / "query-vectors",
        side="query",
        instruction="",
        settings=inputs.settings.embed,
    )


def _mine(inputs: Inputs, workspace: Workspace, galleries: Galleries) -> None:
    """Search and write every row group."""
    shards = id_ranges(workspace.root / "query-vectors")
    tasks, first_row = [], 0
    for number, unit in enumerate(inputs.units):
        low, high = query_id(number, 0), query_id(number + 1, 0)
        own = tuple(path for path, least, most in shards if least < high and most >= low)
        vectors = own or (shards[0][0],)
        rows = inputs.settings.search_rows
        task = MineUnit(unit, number, first_row, galleries, vectors, rows)
        tasks.append((task, workspace.counts(number)))
        first_row += unit.counted_rows
    run_tasks("mined", tasks, inputs.settings.cpus_per_task)


def _problems(inputs: Inputs, workspace: Workspace) -> list[dict[str, Any]]:
    tables = [pq.read_table(workspace.problems(number)) for number in range(len(inputs.units))]
    return pa.concat_tables([PROBLEM_SCHEMA.empty_table(), *tables]).to_pylist()


def _unreadable(inputs: Inputs, workspace: Workspace) -> list[dict[str, Any]]:
    """Every item that took no part, and why: found when rows were read, or when embedding."""
    entries = _problems(inputs, workspace)
    for name in ("query-vectors", "vectors", "outside-vectors"):
        file = workspace.root / name / "quarantine.parquet"
        if file.exists():
            entries += [
                {"where": f"embedding {name}", **row} for row in pq.read_table(file).to_pylist()
            ]
    return entries


def _count(inputs: Inputs, workspace: Workspace) -> dict[str, Any]:
    """Sum what the row groups counted.

    Raises:
        RuntimeError: other rows came out than went in.
    """
    totals: Counter[str] = Counter()
    mined: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    for number in range(len(inputs.units)):
        counts = json.loads(workspace.counts(number).read_text())
        mined.update(counts.pop("mined"))
        dropped.update(counts.pop("dropped"))
        totals.update(counts)
    written = sum(
        pq.read_metadata(workspace.rows(number)).num_rows for number in range(len(inputs.units))
    )
    if not totals["rows"] == written == inputs.rows:
        raise RuntimeError(
            f"{inputs.rows} rows went in, {written} were written and {totals['rows']} counted: "
            f"delete {workspace.root} and run the job again"
        )
    return {**totals, "mined": dict(mined), "dropped": dict(dropped)}


def _summary(target: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    keys = ("rows", "rows_without", "rows_not_searched", "mined", "dropped", "unreadable")
    return {"out": str(target), **{key: manifest[key] for key in keys}}


def _closing_line(manifest: dict[str, Any], seconds: float) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in manifest["mined"].items()) or "none"
    return (
        f"{manifest['rows']} rows, negatives added: {kinds}; {manifest['rows_without']} rows "
        f"without an admissible one, {manifest['rows_not_searched']} not searched, "
        f"{manifest['unreadable']} items unreadable; {seconds:.0f} s"
    )
