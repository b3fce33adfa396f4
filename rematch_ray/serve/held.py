"""The generations of one shard that a replica has open, by name.

Looks at what the index directory publishes, keeps the last two states open, and opens another by
name while it is on disk. An index of another model, or a damaged one, is not taken: the encoder
beside it could not ask it. Knows no Ray and no requests.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rematch_ray.errors import UserError
from rematch_ray.serve.wire import GenerationGoneError

if TYPE_CHECKING:
    from rematch_ray.index.generation import Generation
    from rematch_ray.index.search import SearchIndex
    from rematch_ray.index.sharding.phases import LocalShard
    from rematch_ray.serve.facts import IndexFacts

KEPT = 2
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """An open generation.

    Attributes:
        generation: of the whole index, or of one shard of it.
        index: to search and read it.
    """

    generation: Generation
    index: SearchIndex

    @cached_property
    def shard(self) -> LocalShard:
        """The phases of a search, where it is one shard of several."""
        from rematch_ray.index.sharding.phases import LocalShard

        return LocalShard(self.generation)

    @cached_property
    def coarse_dot_products(self) -> Mapping[str, int]:
        """Of one query, by coarse list."""
        from rematch_ray.index.info import coarse_dot_products

        return coarse_dot_products(self.generation)


class HeldGenerations:
    """What one replica has open; safe to ask from several threads.

    Args:
        path: index directory.
        shard: which shard of it, where it is split.
        identity: JSON of the model that asks; None takes that of the index as it is now.
        device: of torch, where 8-bit vectors are held and scored; None: the CPU.
        preload: read a published state into memory before it is the newest: see `index.preload`.

    Raises:
        UserError: no index, one of another model, no such device, or one that it does not fit.
    """

    def __init__(
        self,
        path: Path,
        shard: int = 0,
        *,
        identity: Mapping[str, Any] | None = None,
        device: str | None = None,
        preload: bool = False,
    ) -> None:
        from rematch_ray.index.preload import Preloader

        if device is not None:
            from rematch_ray.index.maxsim_device import check_device

            check_device(device)
        self._device = device
        self._path = path
        self._shard = shard
        self._identity = identity
        self._lock = threading.Lock()
        self._opened: dict[str, Opened] = {}
        self._states: dict[str, str] = {}
        self._calibrations: dict[str, Mapping[str, Any] | None] = {}
        self._told = ""
        self._preloader = Preloader() if preload else None
        self._newest: Opened
        self._take_published()

    @property
    def states(self) -> Mapping[str, str]:
        """Name of a state -> generation of this shard, the published one last."""
        return dict(self._states)

    @property
    def newest(self) -> Opened:
        """The last that was published."""
        return self._newest

    def look(self) -> bool:
        """Take what is published by now; whether that is another state.

        What cannot be taken is told once, in the log.
        """
        try:
            return self._take_published()
        except UserError as error:
            if str(error) != self._told:
                current = next(reversed(self._states))
                logger.error("still serving %s: %s", current, error)
            self._told = str(error)
            return False

    def opened(self, generation: str | None) -> Opened:
        """An open generation.

        Args:
            generation: its name; None takes the newest.

        Raises:
            GenerationGoneError: it is not open and not on disk any more.
        """
        if generation is None:
            return self.newest
        held = self._opened.get(generation)
        if held is not None:
            return held
        try:
            opened = self._open(generation)
        except UserError as gone:
            raise GenerationGoneError(f"{generation} is gone: {gone}") from gone
        with self._lock:
            return self._keep(generation, opened)

    def facts(self, state: str, generation: str) -> IndexFacts:
        """What a router needs to know of a state.

        Args:
            state: its name.
            generation: of this shard, in that state.
        """
        from rematch_ray.serve.facts import facts_of

        opened = self.opened(generation)
        if state in self._calibrations:
            calibration = self._calibrations[state]
        else:
            # of a set that is not published any more; a shard knows no calibration of the set
            calibration = opened.generation.manifest.calibration
        return facts_of(opened.generation, calibration)

    def _take_published(self) -> bool:
        state, generation, calibration = self._published()
        if self._states and next(reversed(self._states)) == state:
            return False
        opened = self._opened.get(generation) or self._open(generation)
        if self._identity is None:
            self._identity = opened.index.identity
        if self._preloader is not None:
            self._preloader.take(opened.generation)
        with self._lock:
            if calibration is None:
                calibration = opened.generation.manifest.calibration
            others = [(n, s) for n, s in self._states.items() if n != state][1 - KEPT :]
            # replaced as a whole: other threads read them
            self._calibrations = {
                **{name: self._calibrations[name] for name, _ in others},
                state: calibration,
            }
            self._states = {**dict(others), state: generation}
            self._newest = self._keep(generation, opened)
            kept = [each.generation for each in self._opened.values()]
        if self._preloader is not None:
            self._preloader.keep(kept)
        self._told = ""
        return True

    def _published(self) -> tuple[str, str, Mapping[str, Any] | None]:
        """Name of the published state, generation of this shard, and calibration of the set."""
        from rematch_ray.index.generation import read_current
        from rematch_ray.index.sharding.sets import ShardSet, is_sharded

        if not is_sharded(self._path):
            name = read_current(self._path)
            return name, name, None
        found = ShardSet.read(self._path)
        return found.name, found.shards[self._shard].generation, found.calibration

    def _open(self, name: str) -> Opened:
        from rematch_ray.index.generation import Generation
        from rematch_ray.index.search import SearchIndex
        from rematch_ray.index.sharding.sets import ShardSet, is_sharded

        path = self._path
        if is_sharded(path):
            path = path / ShardSet.read(path).shards[self._shard].name
        try:
            generation = Generation(path, name, device=self._device)
            # searches go on with it while a writer, or a merge, publishes the next ones
            generation.hold()
        except OSError as gone:
            raise UserError(f"{name} of {path} cannot be opened: {gone}") from gone
        opened = Opened(generation, SearchIndex(generation))
        if self._identity is not None:
            opened.index.check_model(self._identity)
        return opened

    def _keep(self, name: str, opened: Opened) -> Opened:
        """Hold a generation, and let go of the oldest that no state names."""
        kept = self._opened.setdefault(name, opened)
        named = set(self._states.values()) | {name}
        spare = [each for each in self._opened if each not in named]
        for each in spare[: max(0, len(self._opened) - KEPT - 1)]:
            del self._opened[each]
        return kept
