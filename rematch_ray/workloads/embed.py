"""Embedding a corpus: any format -> read, encode, run the model -> staged rows -> shards, manifest.

Ray Data streams the rows and its checkpoint remembers which are done, by row key; the finishing
step (workloads/shards.py) splits the good from the bad and writes the manifest last. A second run
embeds only what is new or changed; a directory made with another model or setting is refused. Top
floor.
"""

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray.data
from ray.data import ExecutionResources
from ray.data.checkpoint import CheckpointConfig

from rematch_ray.config import EmbedSettings
from rematch_ray.data.prompts import Side
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.units import Unit, fingerprint, payload_type
from rematch_ray.model.checkpoint import resolve_export
from rematch_ray.workloads.disk import held, streaming, writing
from rematch_ray.workloads.embed_actor import ActorSettings, EmbedActor
from rematch_ray.workloads.embed_data import list_items, read_as, tells_every_change
from rematch_ray.workloads.embed_progress import (
    Done,
    InputRows,
    Progress,
    every,
    say,
    stop_when_hopeless,
    write_summary,
)
from rematch_ray.workloads.embed_stages import EncodeItems, ReadItems
from rematch_ray.workloads.embedding_job import (
    Job,
    claim,
    is_finished,
    older_keys,
    output_directory,
    read_manifest,
)
from rematch_ray.workloads.runtime import Background, Bundle, connect
from rematch_ray.workloads.shards import finish
from rematch_ray.workloads.stages import ReadCall, plain_context, read_calls
from rematch_ray.workloads.staging import QUARANTINE, ROW_KEY, Staging

# with a whole CPU, Ray's budgets let no write start on a small machine before all reads have ended
READ_CPUS, WRITE_CPUS = 0.25, 0.25
# an encode task's process takes about that; it also keeps Ray from fusing the stage into the
# actors', where decoding would wait for the forward pass
ENCODER_BYTES = 640 * 2**20
# items of a window: large pictures come in smaller windows, so that a task's memory is bounded
WINDOW_BYTES = 16 * 2**20
BLOCK_BYTES = 32 * 2**20
# one call has the device, one prepares, two wait with their inputs at hand
CALLS_AT_ONCE, CALLS_IN_FLIGHT = 2, 4
FILTER_ACTORS, FILTER_CPUS, FILTER_BYTES = 1, 1.0, 256 * 2**20


def embed(
    *,
    model: str | Path,
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    side: Side = "document",
    instruction: str | None = None,
    settings: EmbedSettings | None = None,
    reader: ReaderSettings | None = None,
) -> dict[str, Any]:
    """Embed a corpus to a directory of shards.

    Args:
        model: an export or a run directory.
        data: files, folders or URIs in any format that `list_data` knows; one or several.
        out: directory to write, no URI; every node must see it under the same path. What it holds
            of the same model and settings is kept.
        side: which bank of meta tokens reads the items.
        instruction: put before every item; None = the default recorded with the model, "" = none.
        settings: actors, batch sizes, precision and the share of bad rows that is accepted.
        reader: format and columns of the data; None detects both.

    Returns:
        Counts, paths, timing and how busy the model was; the same is in `summary.json`.

    Raises:
        UserError: model, data or output do not fit, the output holds other embeddings, two rows
            have one id, or too many rows are bad.
    """
    settings = settings or EmbedSettings()
    export, target = resolve_export(model).absolute(), output_directory(out)
    units = list_items(data, reader)
    say(read_as(units, detected=reader is None or reader.format is None))
    job = Job.of(export, settings, side=side, instruction=instruction, data=fingerprint(units))
    manifest = read_manifest(target, job)
    if manifest is not None and _nothing_is_left(target, manifest, job, units, settings):
        say(f"{target} holds these embeddings already ({manifest['embedded']} rows)")
        return {**_summary(target, manifest), "skipped": True}
    staging = Staging.of(target)
    started = time.monotonic()
    with held(target, staging.root):
        # only now does nobody else write there: what it is and what it holds is settled here
        manifest = read_manifest(target, job)
        if (told := older_keys(staging, manifest)) is not None:
            say(told)
        claim(staging, job)
        with writing(target):
            staging.begin_run()
            staging.note_finished(target, manifest, retry_quarantined=settings.retry_quarantined)
        with connect(embed_bundles(settings, resumes=staging.count_done() > 0)):
            _stream(units, export, job, settings, staging)
            manifest = finish(
                target,
                staging,
                job,
                num_units=len(units),
                max_bad_share=settings.max_bad_share,
                rows_per_shard=settings.rows_per_shard,
            )
            with writing(target):
                staging.settle(target, manifest)
    done, seconds = Done.read(staging.actors), time.monotonic() - started
    result = {
        **_summary(target, manifest),
        "embedded_now": done.rows - done.bad,
        "seconds": round(seconds, 1),
        "rows_per_second": round(done.rows / seconds, 1),
        **done.summary(),
        "skipped": False,
    }
    with writing(target):
        write_summary(target, result)
    if manifest["quarantined"]:
        say(
            f"{manifest['quarantined']} rows could not be embedded, {target / QUARANTINE} says "
            "why; retry_quarantined=true tries them again"
        )
    return result


def _nothing_is_left(
    target: Path, manifest: dict[str, Any], job: Job, units: Sequence[Unit], settings: EmbedSettings
) -> bool:
    """Whether a run would find nothing to do, as far as that is seen without reading the data."""
    retries = settings.retry_quarantined and manifest["quarantined"]
    return not retries and is_finished(target, manifest, job) and tells_every_change(units)


def _summary(target: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    counts = {key: manifest[key] for key in ("side", "rows_in", "embedded", "quarantined")}
    return {"out": str(target), **counts, "shards": len(manifest["shards"])}


def embed_bundles(settings: EmbedSettings, *, resumes: bool = False) -> list[Bundle]:
    """Return what an embedding job needs of the cluster; one that resumes has a filter more."""
    bundles = [
        Bundle(
            "embedding process",
            settings.cpus_per_actor,
            settings.gpus_per_actor,
            settings.min_actors,
            "num_actors, cpus_per_actor or gpus_per_actor",
        ),
        Bundle("data task", settings.cpus_per_encoder, key="cpus_per_encoder"),
    ]
    return [*bundles, Bundle("filter of rows that are done", FILTER_CPUS)] if resumes else bundles


def _stream(
    units: Sequence[Unit], export: Path, job: Job, settings: EmbedSettings, staging: Staging
) -> None:
    """Run the pipeline in a thread and show its progress; Ctrl-C stays with the main thread."""
    rows_in = InputRows(units, staging.inputs_by_number)
    progress = Progress(staging.actors, rows_in, staging.count_done())
    dataset = pipeline(units, export, job, settings, staging)
    write = Background(
        lambda: dataset.write_parquet(
            str(staging.rows),
            # a task that outlives its run must not make the folder anew that was taken from it
            try_create_dir=False,
            min_rows_per_file=settings.rows_per_write,
            ray_remote_args={"num_cpus": WRITE_CPUS},
            arrow_parquet_args_fn=WriteOptions(staging),
        ),
        "embed",
    )
    while not write.wait(every(settings.progress_seconds)):
        say(progress.line())
        with writing(staging.root.parent):
            stop_when_hopeless(
                staging.actors,
                rows_in.exact,
                max_bad_share=settings.max_bad_share,
                max_processes=settings.max_actors,
            )
    with streaming(staging.root.parent):
        write.result()
    say(progress.line())


class WriteOptions:
    """Asked for by each write task: a chance to look where it is about to write.

    Args:
        staging: of the run.
    """

    def __init__(self, staging: Staging) -> None:
        self._staging = staging

    def __call__(self) -> dict[str, Any]:
        """Return no options.

        Raises:
            UserError: this node has another output directory.
        """
        self._staging.refuse_unshared()
        return {}


def pipeline(
    units: Sequence[Unit], export: Path, job: Job, settings: EmbedSettings, staging: Staging
) -> ray.data.Dataset:
    """Return the stream of staged rows; nothing runs before it is written to `staging.rows`."""
    # of a corpus with fewer windows than model processes, which is no mistake
    warnings.filterwarnings("ignore", "The minimum number of concurrent actors")
    context = ray.data.DataContext.get_current().copy()
    with ray.data.DataContext.current(context):
        plain_context()
        context.target_max_block_size = BLOCK_BYTES
        context.checkpoint_config = _checkpoint(staging)
        # left alone, Ray fills half of the object store whatever the model's pace
        context.execution_options.resource_limits = ExecutionResources.for_limits(
            object_store_memory=settings.buffer_bytes * settings.max_actors
        )
        calls = [
            ReadCall(ReadItems(unit, number, staging), unit.num_rows)
            for number, unit in enumerate(units)
        ]
        return (
            read_calls(calls, num_cpus=READ_CPUS)
            .repartition(target_num_rows_per_block=window_rows(units, settings.window_rows))
            .map_batches(
                EncodeItems(str(export), job.side, job.instruction, payload_type(units)),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=settings.cpus_per_encoder,
                memory=ENCODER_BYTES,
            )
            .map_batches(
                EmbedActor,
                fn_constructor_args=(_actor(export, job, settings, staging),),
                batch_size=None,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(
                    min_size=settings.min_actors,
                    max_size=settings.max_actors,
                    max_tasks_in_flight_per_actor=CALLS_IN_FLIGHT,
                    max_concurrent_calls_per_actor=CALLS_AT_ONCE,
                    enable_true_multi_threading=True,
                ),
                num_cpus=settings.cpus_per_actor,
                num_gpus=settings.gpus_per_actor or None,
            )
        )


def _checkpoint(staging: Staging) -> CheckpointConfig:
    """Ray's own record of the rows that are written: its filter sits directly behind the read."""
    config = CheckpointConfig(
        id_column=ROW_KEY,
        checkpoint_path=str(staging.done),
        delete_checkpoint_on_success=False,
        override_filesystem=pyarrow.fs.LocalFileSystem(),
    )
    # for keys of eight bytes; its own defaults are ten actors of one GiB
    config.checkpoint_actor_pool_max_size = FILTER_ACTORS
    config.checkpoint_actor_memory_bytes = FILTER_BYTES
    return config


def _actor(export: Path, job: Job, settings: EmbedSettings, staging: Staging) -> ActorSettings:
    return ActorSettings(
        export=str(export),
        side=job.side,
        batch_rows=settings.batch_rows,
        batch_tokens=settings.batch_tokens,
        batch_pixels=settings.batch_pixels,
        precision=settings.precision,
        device="cuda" if settings.gpus_per_actor else "cpu",
        staging=staging,
    )


def window_rows(units: Sequence[Unit], most: int) -> int:
    """Rows of a window: as many as asked for, fewer where their files say that items are large."""
    counted = [unit for unit in units if unit.num_rows]
    num_bytes = sum(unit.num_bytes for unit in counted)
    num_rows = sum(unit.num_rows or 0 for unit in counted)
    if not num_bytes:
        return most
    return max(1, min(most, WINDOW_BYTES * num_rows // num_bytes))
