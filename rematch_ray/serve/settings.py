"""The settings of one served index: what to serve, who may ask, how much, on what.

Plain pydantic, read and checked without importing Ray; ``args`` of ``cluster/serve.yaml`` is one
`ServeArgs`. Where the service listens is Serve's business (``http_options``), not known here.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from rematch_ray.serve.api_key import LINE, all_keys
from rematch_ray.serve.api_key import ApiKey as ApiKey


class Settings(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(Settings):
    """What one request may ask for; listed in ``/v1/info``."""

    max_body_bytes: int = Field(8_388_608, ge=1024, description="size of a request body")
    max_image_pixels: int = Field(16_777_216, ge=1, description="pixels of one query image")
    max_parts: int = Field(8, ge=1, description="text and image parts of one query")
    max_text_chars: int = Field(8192, ge=1, description="characters of one text part")
    max_instruction_chars: int = Field(1000, ge=1, description="characters of an instruction")
    max_top_k: int = Field(100, ge=1, description="hits of one answer")
    max_offset: int = Field(1000, ge=0, description="hits left out before the first one")
    max_searches: int = Field(32, ge=1, description="searches of one request")
    max_inputs: int = Field(256, ge=1, description="inputs of one /v1/embeddings request")
    max_rerank_documents: int = Field(
        100, ge=1, description="documents of one rerank, also of a search's last rung"
    )
    max_write_documents: int = Field(1000, ge=1, description="documents of one write")
    max_candidates: int = Field(10_000, ge=1, description="candidates, unless 'all' is asked for")
    max_filter_values: int = Field(10_000, ge=1, description="values and names in one filter")
    allow_all_candidates: bool = Field(True, description="whether 'candidates: all' is answered")


class EncoderSettings(Settings):
    """Replicas that turn queries into vectors."""

    num_replicas: int = Field(1, ge=1, description="copies of the model, the least where scaled")
    max_replicas: int | None = Field(None, ge=1, description="scale up to so many; none: do not")
    num_cpus: float = Field(1.0, ge=0, description="CPUs that one replica reserves")
    num_gpus: float = Field(0.0, ge=0, description="GPUs that one replica reserves")
    num_threads: int = Field(1, ge=1, description="torch threads of one replica")
    max_batch_size: int = Field(32, ge=1, description="items encoded together at most")
    max_batch_tokens: int = Field(
        2048, ge=1, description="tokens and image patches encoded together at most"
    )
    batch_wait_s: float = Field(
        0.0, ge=0, description="how long a batch waits to fill; what comes meanwhile joins anyway"
    )
    max_queued_requests: int = Field(256, ge=1, description="queue length before a 503")


class ShardSettings(Settings):
    """Replicas that hold the index."""

    num_replicas: int = Field(1, ge=1, description="copies of the index, the least where scaled")
    max_replicas: int | None = Field(None, ge=1, description="scale up to so many; none: do not")
    num_cpus: float = Field(1.0, ge=0, description="CPUs that one replica reserves")
    num_gpus: float = Field(
        0.0,
        ge=0,
        description="GPUs that one replica reserves; 8-bit vectors are then held and scored there",
    )
    num_threads: int = Field(1, ge=1, description="searches that one replica runs at a time")
    max_queued_requests: int = Field(256, ge=1, description="queue length before a 503")
    in_ingress: bool = Field(
        False,
        description="hold an index that is not split in each HTTP ingress instead: less time a "
        "request, one process fewer; num_replicas then counts ingresses, not ingress_replicas",
    )

    preload: bool = Field(
        True,
        description="read the index into memory before the first search, what small budgets need "
        "first, up to half of the memory that is free",
    )

    @property
    def device(self) -> str | None:
        """Of torch, where a replica scores; None: the CPU."""
        return "cuda" if self.num_gpus else None


class WriterSettings(Settings):
    """The one replica that writes."""

    num_cpus: float = Field(0.0, ge=0, description="CPUs that it reserves; it works in bursts")
    commit_wait_s: float = Field(0.02, ge=0, description="how long a write waits for others")
    commit_rows: int = Field(1024, ge=1, description="documents written together at most")
    max_waiting_rows: int = Field(8192, ge=1, description="documents that wait before a 503")
    encode_ahead: int = Field(16, ge=1, description="documents that are encoded at a time")
    lock_patience_s: float = Field(
        10.0, ge=0, description="how long a write waits while another process writes, before a 503"
    )
    merge_fan_in: int = Field(8, ge=2, description="segments of one size that are merged")
    merge_max_rows: int = Field(20_000, ge=1, description="documents of one merge at most")
    most_segments: int = Field(128, ge=2, description="with more, merging does not wait for quiet")
    max_queued_requests: int = Field(64, ge=1, description="queue length before a 503")


class LoadSettings(Settings):
    """When the ceiling of `auto` budgets is lowered, and when it is raised again."""

    enabled: bool = Field(
        True, description="lower budgets under load; off: queues are all there is"
    )
    target_delay_ms: float | None = Field(
        None, gt=0, description="mean wait that is borne; none: target_share of a full search"
    )
    target_share: float = Field(
        0.1, gt=0, le=1, description="that wait, as a share of an unloaded full search"
    )
    interval_s: float = Field(
        0.3, gt=0, description="how long waits exceed the target before each step down"
    )
    raise_after_s: float = Field(
        5.0, gt=0, description="how long waits stay below it before each step up"
    )
    probe_after_s: float = Field(
        60.0, gt=0, description="when a rung that was too dear at this rate is tried again"
    )
    explicit_from_level: int = Field(
        2, ge=1, description="rungs below the top from which on explicit budgets get a 429"
    )


class QuotaSettings(Settings):
    """What keys that name no quota of their own may use, and how replicas share quotas."""

    requests_per_s: float | None = Field(
        None, gt=0, description="of each such key and of anonymous callers; none: unlimited"
    )
    dot_products_per_s: float | None = Field(None, gt=0, description="likewise, of search work")
    burst_s: float = Field(
        2.0, gt=0, description="how many seconds' worth may be used at once after a pause"
    )
    lease_s: float = Field(
        1.0, gt=0, description="how long a replica may keep a slice that it does not use"
    )


class SwapSettings(Settings):
    """A change of model and index while the service runs."""

    warm_timeout_s: float = Field(
        900.0, gt=0, description="how long a new set may take to come up before it is given up"
    )
    drain_timeout_s: float = Field(
        60.0, gt=0, description="how long requests may stay on the old set"
    )


class AccessLogSettings(Settings):
    """One line of JSON per answered request."""

    enabled: bool = Field(True, description="write it")
    directory: Path | None = Field(
        None, description="files access-HOST-PID.jsonl in it, in turn; none: standard output"
    )
    max_bytes: int = Field(67_108_864, ge=1024, description="of one file, then the next begins")
    num_files: int = Field(5, ge=1, description="files that are kept of each replica")
    queries: bool = Field(False, description="with the text of queries and ids of documents")


class QueryLogSettings(Settings):
    """Vectors of a share of the queries, for ``rematch-ray doctor --queries``; off by default."""

    directory: Path | None = Field(
        None, description="files queries-*.parquet in it, of all replicas; none: no log"
    )
    share: float = Field(0.1, gt=0, le=1, description="of the queries that are answered")
    max_bytes: int = Field(
        67_108_864, ge=1_048_576, description="of all files together; the oldest go first"
    )


class ServeArgs(Settings):
    """Everything ``rematch_ray.serve.app:build`` takes."""

    index: Path = Field(description="index directory")
    model: str | None = Field(
        None, description="export or run directory; default: the one the index names"
    )
    api_keys: tuple[ApiKey, ...] = Field((), description="who may call /v1")
    api_keys_file: Path | None = Field(
        None, description=f"more keys, a line each: {LINE}; read again when it changes"
    )
    allow_anonymous: bool = Field(
        False,
        description="answer without a key where no keys are named, and then only who asks for "
        "localhost; only for a service bound to loopback",
    )
    media_roots: tuple[Path, ...] = Field(
        (), description="directories whose images /v1/documents/{id}/image may return"
    )
    limits: Limits = Limits()
    encoder: EncoderSettings = EncoderSettings()
    shard: ShardSettings = ShardSettings()
    writer: WriterSettings = WriterSettings()
    swap: SwapSettings = SwapSettings()
    load: LoadSettings = LoadSettings()
    quotas: QuotaSettings = QuotaSettings()
    access_log: AccessLogSettings = AccessLogSettings()
    query_log: QueryLogSettings = QueryLogSettings()
    ingress_replicas: int = Field(1, ge=1, description="copies of the HTTP ingress")
    head_weight: float = Field(
        0.01, gt=0, description="of the matching head where it is asked for and was not measured"
    )
    drift_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of calibrated searches that is checked in the background",
    )

    def read_keys(self) -> tuple[ApiKey, ...]:
        """All keys, those of the file included.

        Raises:
            UserError: see `all_keys`.
        """
        return all_keys(self.api_keys, self.api_keys_file, allow_anonymous=self.allow_anonymous)


def describe() -> str:
    """Every setting of `ServeArgs`: dotted name, default and what it means."""
    return "\n".join(_describe(ServeArgs, ""))


def _describe(model: type[BaseModel], prefix: str) -> list[str]:
    lines = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            lines += _describe(inner, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else f"= {field.default}"
        lines.append(f"  {prefix + name:<30}{default:<16}{field.description or ''}")
    return lines
