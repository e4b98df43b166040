"""The models in use, and the watch on the artifact directory that swaps them.

In: the artifact root. Out: :attr:`ModelHolder.current`, replaced whole between two cycles. A new version is verified
in a child process first, so that whatever is wrong with it stays there; one that fails leaves the old in place.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from features.errors import ArtifactCorrupt, ArtifactError, ArtifactMismatch, ArtifactMissing
from features.recommender import Recommender
from features.scoring import FraudModel
from stream.metrics import Metrics
from trainer import artifacts

log = logging.getLogger("headrace.models")
_VERIFY_S = 60.0
NO_VERSION = "none"


_nothing_known = cache(Recommender.empty)


@dataclass(frozen=True, slots=True)
class Served:
    """One version's models; a part that the artifact does not hold is None."""

    version: str
    fraud: FraudModel | None
    recommender: Recommender | None
    b: Served | None = None  # of a second variant, see stream/variants.py

    def warm(self) -> None:
        """Run everything once, so that no event waits for a compiler."""
        if self.fraud is not None:
            row = np.full((1, len(self.fraud.features)), np.nan)
            self.fraud.score_many(row)
            self.fraud.reasons(row[0])
        if self.recommender is not None:
            self.recommender.recommend_many(np.zeros((1, 20), np.uint64), np.ones(1, np.int64), 1)


def answering(served: Served) -> Served:
    """The models that clicks are answered by: without a recommender, one that knows no item, as version "none"."""
    return served if served.recommender is not None else Served(NO_VERSION, None, _nothing_known(), served.b)


def load_served(root: Path, version: str, schema_hash: str, names: Sequence[str], *, shared: bool = False) -> Served:
    """Load and warm one version; ``names`` are the features that the worker computes, in their order.

    ``shared`` as in :func:`trainer.artifacts.load`.

    Raises
    ------
    ArtifactError
        If it is missing, damaged, of another feature schema or for other features.
    """
    artifact = artifacts.load(root, version, schema_hash, shared=shared)
    served = Served(version, artifact.fraud, artifact.recommender)
    if served.fraud is not None and (found := [feature.name for feature in served.fraud.features]) != list(names):
        pairs = enumerate(zip(found, names, strict=False))
        where = next((i for i, (a, b) in pairs if a != b), min(len(found), len(names)))
        raise ArtifactMismatch(
            f"artifact {version} was fitted for {len(found)} features, this worker computes {len(names)}, and they "
            f"differ from number {where + 1} on. Train again with `headrace train` of the same version of Headrace."
        )
    served.warm()
    return served


class ModelHolder:
    """The current models; :meth:`watch` replaces them.

    ``meanwhile`` is done while the child process verifies the first ones; they are loaded after its verdict. Where they
    are not ``required``, an empty root begins without any. ``shared`` as in :func:`trainer.artifacts.load`.
    """

    def __init__(self, root: Path, schema_hash: str, names: Sequence[str], metrics: Metrics,
                 meanwhile: Callable[[], None], *, required: bool = True, shared: bool = False) -> None:  # fmt: skip
        self._root = root
        self._schema_hash = schema_hash
        self._load = partial(load_served, root, schema_hash=schema_hash, names=tuple(names), shared=shared)
        self._metrics = metrics
        self._refused: set[str] = set()
        self._told = ""  # why the newest version is refused
        self.prepare: Callable[[Served], None] | None = None  # asked of whoever needs time for a version before its use
        version = artifacts.current_version(root)
        self._decides = True  # about transactions
        if version is None:
            if required:
                raise ArtifactMissing(f"no model is published in {root}; run `headrace train` or `headrace up` first")
            log.warning("models: none is published in %s; decisions go by rules until one is", root)
            meanwhile()
            self.current = Served(NO_VERSION, None, None)
            metrics.set_model(NO_VERSION)
            return
        with artifacts.Verification(root, version, schema_hash) as verification:
            meanwhile()
            verification.wait(_VERIFY_S)
        self.current = self._load(version)
        self._decides = self.current.fraud is not None
        metrics.set_model(version)

    async def watch(self, every_s: float) -> None:
        """Look for a new version every ``every_s`` seconds, for ever."""
        while True:
            await asyncio.sleep(every_s)
            try:
                version = await asyncio.to_thread(artifacts.current_version, self._root)
                if version is not None and version != self.current.version and version not in self._refused:
                    await self._swap(version)
            except (ArtifactError, OSError) as error:
                self._tell(str(error))

    def _tell(self, reason: str) -> None:
        """Say once, and count, that a version is refused; what may get better is tried again in silence."""
        if reason != self._told:
            self._told = reason
            self._metrics.models_refused.inc()
            log.error("models: %s; version %s stays in use", reason, self.current.version)

    async def _swap(self, version: str) -> None:
        try:
            await asyncio.to_thread(artifacts.verify_in_child, self._root, version, self._schema_hash, _VERIFY_S)
            served = await asyncio.to_thread(self._load, version)
            if self.prepare is not None:
                await asyncio.to_thread(self.prepare, served)
        except (ArtifactCorrupt, ArtifactMismatch):
            self._refused.add(version)  # it will not get better; anything else is tried again
            raise
        except (ArtifactError, OSError):
            raise
        except Exception as error:
            self._refused.add(version)
            log.exception("models: version %s cannot be used", version)
            raise ArtifactCorrupt(f"artifact {version}: {type(error).__name__}: {error}") from None
        old = self.current
        if self._lacks(served):
            self._refused.add(version)
            raise ArtifactMissing(f"version {version} holds other kinds of models than {old.version}")
        self.current = served
        self._told = ""
        self._metrics.set_model(version)
        log.info("models: version %s is in use, after %s", version, old.version)

    def _lacks(self, new: Served) -> bool:
        """Whether a version would take away what is in use, or decides about what this worker does not read."""
        old = self.current
        if (new.fraud is None and old.fraud is not None) or (new.recommender is None and old.recommender is not None):
            return True
        return new.fraud is not None and not self._decides
