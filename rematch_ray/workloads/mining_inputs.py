"""What a mining job reads, found and checked before anything starts, and what identifies it.

Knows nothing of how rows are mined. Top floor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rematch_ray.config import MineSettings
from rematch_ray.data.readers.files import look
from rematch_ray.data.readers.formats import formats, list_data
from rematch_ray.data.readers.parquet import NAME, list_units
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.units import Unit, fingerprint
from rematch_ray.data.readers.unread import refuse_unread
from rematch_ray.errors import UserError
from rematch_ray.index.mining.miner import MinerSettings
from rematch_ray.index.mining.pinned import PinnedIndex
from rematch_ray.index.mining.selection import MiningRules
from rematch_ray.index.search import SearchIndex
from rematch_ray.model.checkpoint import load_identity, read_meta, resolve_export
from rematch_ray.model.settings import ModelIdentity, ModelSettings
from rematch_ray.scoring.budget import Ladder
from rematch_ray.workloads.mining_job import Job

# settings that say how a job is run, not what comes out; how rows are read is in their fingerprint
ONLY_HOW = {"search_rows", "cpus_per_task", "embed", "reader"}
# settings of embedding that change what vectors are, and so what is found
OF_VECTORS = {"precision", "store_dtype"}


@dataclass(frozen=True)
class Inputs:
    """What a job reads, found and checked.

    Args:
        export: the model's export.
        identity: of the model.
        model: its settings.
        units: row groups of the training rows.
        corpus: paths of the corpus, or None: the rows' own documents.
        corpus_units: its row groups.
        index: an index of the corpus, at the one state that is read, or None.
        settings: of the job.
    """

    export: Path
    identity: ModelIdentity
    model: ModelSettings
    units: Sequence[Unit]
    corpus: Sequence[Path] | None
    corpus_units: Sequence[Unit]
    index: PinnedIndex | None
    settings: MineSettings

    @property
    def rows(self) -> int:
        """Training rows."""
        return sum(unit.counted_rows for unit in self.units)

    @property
    def miner(self) -> MinerSettings:
        """How candidates are searched and taken."""
        given = self.settings
        rules = MiningRules(**{name: getattr(given, name) for name in MiningRules.model_fields})
        return MinerSettings(rules, given.budget, given.candidates, given.own_source)

    def job(self) -> Job:
        """What the output depends on."""
        return Job(
            model=self.identity.digest,
            data=fingerprint(self.units),
            corpus=fingerprint(self.corpus_units) if self.corpus_units else None,
            index=None if self.index is None else self.index.digest,
            settings={
                **self.settings.model_dump(mode="json", exclude=ONLY_HOW),
                **self.settings.embed.model_dump(include=OF_VECTORS),
            },
        )


def read_inputs(
    model: str | Path,
    data: str | Path | Sequence[str | Path],
    corpus: str | Path | Sequence[str | Path] | None,
    index: str | Path | None,
    settings: MineSettings,
) -> Inputs:
    """Find and check what a job reads, before anything starts.

    Raises:
        UserError: as `mine`.
    """
    export = resolve_export(model).absolute()
    identity = load_identity(export)
    ladder = Ladder.parse(identity.ladder)
    pinned = None
    if index is not None:
        if corpus is None:
            raise UserError("--index needs --corpus: the documents themselves become negatives")
        pinned = PinnedIndex.of(Path(index).expanduser().absolute())
        opened = SearchIndex(pinned.open())
        opened.check_model(identity)
        ladder = opened.ladder
    ladder.resolve(settings.budget, has_fused=identity.fused_dim is not None)
    paths = None if corpus is None else _paths(corpus)
    return Inputs(
        export=export,
        identity=identity,
        model=ModelSettings.model_validate(read_meta(export)["settings"]),
        units=list_data(_given(data), settings.reader, rows="samples"),
        corpus=paths,
        corpus_units=_list_corpus(paths) if paths else [],
        index=pinned,
        settings=settings,
    )


def _list_corpus(paths: Sequence[Path]) -> list[Unit]:
    """The row groups of a corpus, which is our own Parquet and nothing else."""
    known = formats()
    for path in paths:
        refuse_unread(
            known[NAME], look(path), "items", ReaderSettings(), known.values(), can_be_named=False
        )
    return list_units(paths, rows="items")


def _paths(given: str | Path | Sequence[str | Path]) -> list[Path]:
    return [Path(path).expanduser().absolute() for path in _given(given)]


def _given(paths: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [paths] if isinstance(paths, str | Path) else list(paths)
