"""What a run, an embedding job and an evaluation are told.

Settings of the middle floor stand beside what they build; those of the Ray workloads stand here, so
that a configuration is read, checked and documented without importing Ray. Every key takes effect
or is refused by name (config_file.py). Middle floor.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rematch_ray.config_file import Settings, describe, read_settings
from rematch_ray.data.mix import MixSettings, read_mix
from rematch_ray.data.order import OrderSettings
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.sources import SourceSettings, refuse_repeated
from rematch_ray.errors import UserError
from rematch_ray.index.mining.selection import MiningRules
from rematch_ray.model.settings import ModelSettings
from rematch_ray.scoring.budget import Ladder
from rematch_ray.training.settings import ObjectiveSettings, OptimisationSettings
from rematch_ray.training.strategies import StrategySettings, check_strategy

RECALLS = ("recall@1", "recall@10")


def _checked_range(given: Any) -> Any:
    """A number above 0 or such a [min, max], else ValueError."""
    ends = given if isinstance(given, list | tuple) and len(given) == 2 else (given, given)
    if any(type(end) is not int or end < 1 for end in ends) or ends[0] > ends[1]:
        raise ValueError(f"{given!r} is neither a number above 0 nor such a [min, max]")
    return given


class DemoDataSettings(Settings):
    """The shipped demo corpora as training data: written where the sources expect them."""

    out: Path
    """Directory they are written to, unless it holds exactly these already."""
    corpora: tuple[str, ...] = ("emoji", "scenes")
    """Which of emoji, scenes and pages."""
    quick: bool = False
    """A few rows of each instead of all."""


class DataSettings(Settings):
    """What is read, in which order, and what of each row."""

    demo: DemoDataSettings | None = None
    """Write the shipped demo corpora first; null = the sources are there already."""
    sources: tuple[SourceSettings, ...] = ()
    """The sources of training rows."""
    mix: MixSettings | None = None
    """Further sources, listed in a YAML file of VLM2Vec; null = none."""
    max_negatives: int = Field(default=1, ge=0)
    """Hard negatives taken from each row, drawn anew every time it comes."""
    max_bad_share: float = Field(default=0.01, ge=0, le=1)
    """Share of an epoch's rows that may fail to be encoded before the run stops."""
    order: OrderSettings = OrderSettings()
    """Batch sizes, shuffle window and mixing."""

    @model_validator(mode="after")
    def _has_sources(self) -> "DataSettings":
        if not self.sources and self.mix is None:
            raise ValueError("no source of training rows; give sources, mix, or both")
        refuse_repeated(self.sources)
        return self

    def all_sources(self) -> tuple[SourceSettings, ...]:
        """The sources, those of the mix included.

        Raises:
            UserError: the mix cannot be read, or a name repeats.
        """
        sources = self.sources + (() if self.mix is None else read_mix(self.mix))
        refuse_repeated(sources)
        return sources


class TrainSettings(Settings):
    """How the training run is spread over the cluster, saved and reported."""

    steps: int = Field(gt=0)
    """Optimisation steps of the whole run, over all epochs."""
    num_workers: int | tuple[int, int] = 2
    """Training processes: a number, or [min, max] for as many as there is room for; may change."""
    resize_seconds: float = Field(default=60.0, gt=0)
    """Seconds between looks whether [min, max] workers could be more; a change is a restart."""
    cpus_per_worker: float = Field(default=0.5, gt=0)
    """Logical CPUs each training process reserves."""
    gpus_per_worker: float = Field(default=0, ge=0)
    """GPUs each training process reserves; 0 trains on CPU with gloo."""
    cpus_per_encoder: float = Field(default=1.0, gt=0)
    """Logical CPUs of each task that decodes images and runs the processor."""
    readers: int = Field(default=1, gt=0)
    """Tasks that read row groups at the same time; more where storage is slow."""
    encode_ahead: int = Field(default=16, ge=2)
    """Steps whose batches data tasks make before they are taken; more where encoding is slow."""
    prefetch_steps: int = Field(default=2, ge=0)
    """Steps whose batches a training process holds ready."""
    start_from: Path | None = None
    """Checkpoint of another run of the same model to begin with (RUN/checkpoint_0000100): weights,
    optimiser and steps done, under this run's settings and data; null = begin with model.base."""
    checkpoint_every: int = Field(default=100, gt=0)
    """Steps between checkpoints; one is always written after the last step."""
    keep_checkpoints: int = Field(default=2, gt=0)
    """Checkpoints kept; older ones are deleted."""
    async_checkpoints: bool | None = None
    """Write checkpoints while training goes on; null = where the strategy can."""
    max_failed_checkpoints: int = Field(default=3, gt=0)
    """Checkpoints in a row that may fail to be written before the run stops."""
    max_failures: int = Field(default=3, ge=0)
    """Times the workers are restarted from the last checkpoint before the run fails."""
    max_preemptions: int = Field(default=-1, ge=-1)
    """Restarts because a node was taken away, counted apart from failures; -1 = any number."""
    progress_seconds: float = Field(default=5.0, gt=0)
    """Seconds between two lines of progress."""
    collective_timeout_seconds: float = Field(default=300.0, gt=0)
    """Seconds after which a rank that waits for another one fails (and the run is restarted)."""

    @field_validator("num_workers", mode="before")
    @classmethod
    def _number_or_range(cls, given: Any) -> Any:
        return _checked_range(given)

    @property
    def min_workers(self) -> int:
        """Training processes without which the run does not start."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        """Training processes when there is room for all."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


class HeldOutSettings(Settings):
    """One set of queries that training never sees: Items with qrels, or Samples."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the set, in metrics."""
    queries: Path | None = None
    """Parquet of Items: the queries; with `corpus` and `qrels`."""
    corpus: Path | None = None
    """Parquet of Items: the documents."""
    qrels: Path | None = None
    """Parquet file with query_id, document_id and score: what is relevant."""
    samples: Path | None = None
    """Samples instead, in any format: their positives and hard negatives are the documents."""
    reader: ReaderSettings = ReaderSettings()
    """How the samples are read."""

    @model_validator(mode="after")
    def _one_kind(self) -> "HeldOutSettings":
        items = (self.queries, self.corpus, self.qrels)
        if (self.samples is None) == (None in items) or (self.samples and any(items)):
            raise ValueError(
                f"validation set {self.name!r} needs either samples, or queries, corpus and qrels"
            )
        if self.samples is None and self.reader != ReaderSettings():
            raise ValueError(f"validation set {self.name!r}: reader says how samples are read")
        return self


class ValidationSettings(Settings):
    """Recall at every budget on held-out sets, beside training; the best weights become `best/`."""

    sets: tuple[HeldOutSettings, ...] = Field(min_length=1)
    """What is measured."""
    every: int | None = Field(default=None, gt=0)
    """Steps between validations, a multiple of train.checkpoint_every; null = each checkpoint."""
    max_queries: int | None = Field(default=500, gt=0)
    """Queries of each set, drawn by the run's seed; null = all."""
    max_documents: int | None = Field(default=None, gt=0)
    """Documents of each set: the right ones, then others drawn by the seed; null = all."""
    metric: str = "recall@10/full"
    """What `best/` is best in: recall@1 or recall@10 at a budget, mean of the sets or SET/...;
    recall@10/fused by default where objective.w_groups is 0 (preset rematch)."""
    batch_rows: int = Field(default=32, gt=0)
    """Items per forward pass."""
    cpus: float = Field(default=1.0, gt=0)
    """Logical CPUs that a validation reserves beside the training processes."""
    gpus: float = Field(default=0, ge=0)
    """GPUs that it reserves; 0 validates on CPU."""

    @model_validator(mode="after")
    def _names_differ(self) -> "ValidationSettings":
        names = [held_out.name for held_out in self.sets]
        if len(set(names)) < len(names):
            raise ValueError(f"validation set names {', '.join(names)} repeat; give each its own")
        return self

    def metric_name(self, ladder: Ladder, *, has_fused: bool) -> str:
        """`metric` with its budget as a rung: `recall@10/full` -> `recall@10/16x64`.

        Raises:
            UserError: no such set, cut-off or budget.
        """
        *of_set, cut, budget = ["", "", *self.metric.split("/")][-3:]
        named = {"", *(held_out.name for held_out in self.sets)}
        if self.metric.count("/") not in (1, 2) or cut not in RECALLS or of_set[0] not in named:
            raise UserError(
                f"validation.metric {self.metric!r} is not one of recall@1/BUDGET, "
                f"recall@10/BUDGET, or one of these after SET/ "
                f"(sets: {', '.join(sorted(named - {''}))})"
            )
        rung = ladder.resolve(budget, has_fused=has_fused)
        return "/".join([*filter(None, of_set), cut, str(rung)])


class TrackSettings(Settings):
    """Where metrics go beside the run directory's metrics.jsonl."""

    tensorboard: bool = True
    """Write event files into the run directory's `tensorboard/`."""
    wandb: str | None = None
    """Weights & Biases project, or ENTITY/PROJECT; null = none."""
    mlflow: str | None = None
    """MLflow tracking URI; the experiment is called `rematch-ray`; null = none."""


class RunConfig(Settings):
    """A training run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; with `storage` it is the run's directory, and its identity when resumed."""
    storage: Path = Path("runs")
    """Directory that holds runs; on several nodes one that all of them share."""
    seed: int = Field(default=0, ge=0)
    """Seed of the initial weights, the order of rows and every draw."""
    model: ModelSettings
    """The base model and what is added to it."""
    objective: ObjectiveSettings = Field(default_factory=ObjectiveSettings)
    """The loss: its terms, weights, groups and masks."""
    optimisation: OptimisationSettings = Field(default_factory=OptimisationSettings)
    """The optimiser and its schedule."""
    strategy: StrategySettings = Field(default_factory=StrategySettings)
    """How the training processes share the work, and in which precision."""
    data: DataSettings
    """Sources and order of the training rows."""
    train: TrainSettings
    """Workers, checkpoints and progress."""
    validation: ValidationSettings | None = None
    """Held-out sets measured beside training; null = none, and the last weights are the best."""
    track: TrackSettings = TrackSettings()
    """TensorBoard, Weights & Biases, MLflow."""

    @model_validator(mode="after")
    def _rematch_sizes(self) -> "RunConfig":
        """The preset `rematch` has banks of 16 and 16 and a fused vector as wide as the model."""
        if self.objective.preset != "rematch":
            return self
        own = {"ladder": ("16x16",), "fused_dim": "hidden"}
        update = {name: own[name] for name in own.keys() - self.model.model_fields_set}
        object.__setattr__(self, "model", self.model.model_copy(update=update))
        return self

    @model_validator(mode="after")
    def _best_in_what_is_trained(self) -> "RunConfig":
        """Where no budget is trained, `best/` is the best by the fused vector."""
        validation = self.validation
        if validation is None or self.objective.w_groups or "metric" in validation.model_fields_set:
            return self
        measured = validation.model_copy(update={"metric": "recall@10/fused"})
        object.__setattr__(self, "validation", measured)
        return self

    @model_validator(mode="after")
    def _model_settings_take_effect(self) -> "RunConfig":
        model, top = self.model, self.model.budgets.top
        if model.lora is not None and "language" in model.freeze:
            raise ValueError(
                "model.freeze names 'language', whose weights model.lora freezes anyhow to train "
                "adapters beside them: leave either out"
            )
        smaller, usual = min(top.r_q, top.r_d), ModelSettings.model_fields["fuse_k"].default
        if model.fuse_k > smaller and model.fuse_k != usual:
            raise ValueError(
                f"model.fuse_k {model.fuse_k} is more than the {smaller} meta tokens of the "
                f"smaller bank (model.ladder ends in {top}): lower it"
            )
        return self

    @model_validator(mode="after")
    def _parts_are_whole(self) -> "RunConfig":
        """Every part of a step is the same sub-batches however many ranks share it."""
        parts, order = self.optimisation.accumulation, self.data.order
        held = order.global_batch // order.sub_batch
        workers = range(self.train.min_workers, self.train.max_workers + 1)
        if parts > 1 and (held % parts or any(held // parts % count for count in workers)):
            raise ValueError(
                f"optimisation.accumulation {parts} cuts the {held} sub-batches of a step into "
                f"parts that {self.train.num_workers} workers cannot share evenly: change it, "
                "train.num_workers, data.order.global_batch or data.order.sub_batch"
            )
        return self

    @model_validator(mode="after")
    def _strategy_fits(self) -> "RunConfig":
        """The strategy can do what the model, the optimiser and the workers ask for."""
        check_strategy(
            self.strategy,
            self.model,
            self.optimisation,
            elastic=self.train.min_workers < self.train.max_workers,
            in_background=self.train.async_checkpoints,
        )
        return self

    @model_validator(mode="after")
    def _validation_fits(self) -> "RunConfig":
        """Validation runs on checkpoints, and its metric names a budget of the model."""
        if self.validation is None:
            return self
        every = self.validation.every
        if every is not None and every % self.train.checkpoint_every:
            raise ValueError(
                f"validation.every {every} is not a multiple of train.checkpoint_every "
                f"{self.train.checkpoint_every}: a checkpoint is what is validated"
            )
        self.validation_metric  # noqa: B018 - refuses a metric that does not exist
        return self

    @property
    def validation_metric(self) -> str:
        """Name of the metric that `best/` is best in, its budget resolved."""
        assert self.validation is not None
        has_fused = self.objective.w_fused > 0
        return self.validation.metric_name(self.model.budgets, has_fused=has_fused)

    @property
    def directory(self) -> Path:
        """The run directory, absolute: training workers run in a directory of their own."""
        return self.storage.expanduser().absolute() / self.name


class EmbedSettings(Settings):
    """How an embedding job is spread over the cluster and what it accepts."""

    batch_rows: int = Field(default=32, gt=0)
    """Most items of a forward pass."""
    batch_tokens: int = Field(default=32768, gt=0)
    """Most tokens of a forward pass, padding and meta tokens included."""
    batch_pixels: int = Field(default=2**24, gt=0)
    """Most image pixels of a forward pass, after resizing."""
    window_rows: int = Field(default=256, gt=0)
    """Rows among which those of like length are put together; fewer where items are large."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """Precision of the backbone; null = the export's own."""
    num_actors: int | tuple[int, int] = 1
    """Processes that hold the model: a number, or [min, max] for as many as there is work for."""
    cpus_per_actor: float = Field(default=1.0, gt=0)
    """Logical CPUs each of them reserves."""
    gpus_per_actor: float = Field(default=0, ge=0)
    """GPUs each of them reserves; 0 embeds on CPU."""
    cpus_per_encoder: float = Field(default=1.0, gt=0)
    """Logical CPUs of each task that decodes images and runs the processor."""
    buffer_bytes: int = Field(default=2**29, gt=0)
    """Bytes of rows that may wait between stages, for each model process; some windows at least."""
    rows_per_write: int = Field(default=2048, gt=0)
    """Rows that are written together; a killed run embeds again what was not written yet."""
    rows_per_shard: int = Field(default=4096, gt=0)
    """Rows that a shard holds at least (but for the last), unless the whole corpus is smaller."""
    store_dtype: Literal["float16", "int8"] = "float16"
    """How vectors are stored; int8 takes half the space, with a scale per vector."""
    num_vectors: int | None = Field(default=None, gt=0)
    """Vectors stored of each item, the first so many, a trained prefix; null = all."""
    max_bad_share: float = Field(default=0.01, ge=0, le=1)
    """Share of rows that may be quarantined before the job stops with an error."""
    retry_quarantined: bool = False
    """Try again what an earlier run could not embed: for more memory, or a higher limit."""
    progress_seconds: float | None = Field(default=None, gt=0)
    """Seconds between two lines of progress; null = 5 in a terminal, 60 in a log."""

    @field_validator("num_actors", mode="before")
    @classmethod
    def _number_or_range(cls, given: Any) -> Any:
        return _checked_range(given)

    @property
    def min_actors(self) -> int:
        """Model processes without which the job does not start."""
        return self.num_actors if isinstance(self.num_actors, int) else self.num_actors[0]

    @property
    def max_actors(self) -> int:
        """Model processes when there is work and room for all."""
        return self.num_actors if isinstance(self.num_actors, int) else self.num_actors[1]


class EmbedJobSettings(EmbedSettings):
    """What `rematch-ray embed` is told beside its arguments."""

    reader: ReaderSettings = ReaderSettings()
    """How the data is read; `--format` and `--columns` are short for two of its keys."""


class MineSettings(MiningRules):
    """How hard negatives are mined: which are taken, how they are searched, and on what."""

    budget: str = "full"
    """Budget at which candidates and positives are scored: a rung, its name, or fused."""
    candidates: int | Literal["auto", "all"] = "auto"
    """Documents scored for each query: the coarse stage's best so many, all, or the plan's."""
    own_source: bool = False
    """Take negatives only from documents of the row's own source."""
    search_rows: int = Field(default=256, gt=0)
    """Rows searched together; more need more memory."""
    cpus_per_task: float = Field(default=1.0, gt=0)
    """Logical CPUs of each task that reads, searches or writes rows."""
    reader: ReaderSettings = ReaderSettings()
    """How the training rows are read."""
    embed: EmbedSettings = EmbedSettings()
    """How queries and documents are embedded; `max_bad_share` holds for everything read."""

    @model_validator(mode="after")
    def _candidates_suffice(self) -> "MineSettings":
        if isinstance(self.candidates, int) and self.candidates < self.ranks[1]:
            raise ValueError(
                f"candidates {self.candidates} is below the last of ranks, {self.ranks[1]}; "
                "score at least as many documents as are looked at"
            )
        return self

    @model_validator(mode="after")
    def _every_vector_is_stored(self) -> "MineSettings":
        if self.embed.num_vectors is not None:
            raise ValueError(
                "embed.num_vectors cannot be set when mining: budget says how many vectors are "
                "compared, and the vectors are not kept"
            )
        return self


class TaskSettings(Settings):
    """One retrieval task of an evaluation: queries, and what is right for them."""

    name: str
    """Name of the task, for tables."""
    queries: Path
    """The queries, in any format of Items (docs/data.md)."""
    reader: ReaderSettings = ReaderSettings()
    """How the queries are read."""
    qrels: Path
    """What is relevant: Parquet, TSV or TREC columns of query, document and score, or MMEB-eval."""
    candidates: Literal["all", "listed"] = "all"
    """A query is ranked among all documents, or only those that the qrels list for it."""
    unjudged: Literal["refuse", "leave_out"] = "refuse"
    """What to do with queries that nothing is right for, as in BEIR's files of all splits."""
    source: str | None = None
    """Only documents of this source are the gallery; null = the whole index."""
    families: Path | None = None
    """Parquet file with document_id and family; adds accuracy inside the family."""
    swaps: Path | None = None
    """Parquet file with query_id, document_id and kind; adds the share ranked lower."""
    corpus: Path | None = None
    """Parquet of the documents; with swaps, the matching stage is asked about them too."""
    slice_field: str | None = None
    """Payload field of the queries by which results are also split."""


class EvaluationConfig(Settings):
    """An evaluation: quality against cost at every budget of an index."""

    index: Path
    """Index directory that holds the galleries."""
    out: Path
    """Directory for report.json, report.md and the plots."""
    model: str | None = None
    """Export or run directory; null = the model that the index names."""
    tasks: tuple[TaskSettings, ...] = Field(min_length=1)
    """What is measured."""
    instruction: str | None = None
    """Put before every query; null = the default recorded with the model, "" = none."""
    batch_rows: int = Field(default=32, gt=0)
    """Queries per forward pass."""
    timed_queries: int = Field(default=20, ge=0)
    """Queries searched one by one for a rung's latency; 0 measures none."""
    matching_triplets: int = Field(default=256, ge=0)
    """Swaps about which the matching stage is asked, drawn at random; 0 asks none."""
    ks: tuple[int, ...] = (1, 10)
    """Cut-offs of recall, hit and nDCG."""
    seed: int = Field(default=0, ge=0)
    """Seed of the bootstrap."""
    plots: bool = True
    """Draw the plots; they need matplotlib (extra `eval`)."""


Kind = Literal["run", "embed", "mine", "evaluate"]
KINDS: dict[Kind, type[Settings]] = {
    "run": RunConfig,
    "embed": EmbedJobSettings,
    "mine": MineSettings,
    "evaluate": EvaluationConfig,
}


def read_run(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a training run.

    Args:
        path: YAML file.
        overrides: `a.b=value` each, the value in YAML; they replace what the file says.

    Returns:
        The checked configuration.

    Raises:
        UserError: no such file, no YAML, an unknown key (with the nearest known one) or a value
            that its key does not allow.
    """
    return read_settings(RunConfig, path, overrides)


def read_evaluation(path: Path | str, overrides: Sequence[str] = ()) -> EvaluationConfig:
    """Read an evaluation; arguments and errors as in `read_run`."""
    return read_settings(EvaluationConfig, path, overrides)


def describe_keys(kind: Kind) -> str:
    """List every key of a configuration: dotted name, type, default and what it means."""
    return describe(KINDS[kind])
