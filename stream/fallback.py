"""What is decided when something is missing: rung by rung with less, and the decision says which and why.

In: vectors, the fraud model or None, the time that the cycle took so far. Out: :class:`Scored`, and actions where there
is no score. State owned: a model that still runs after its deadline.

1. *full*: score, anomaly, rules, reasons.
2. *without reasons*: the deadline passed after the scores, or explaining raised.
3. *without model*: anomaly and rules; there is no supervised model, it raised or said NaN, or it missed the deadline.
4. *default action*: no anomaly either, and no rule hit.

Unless ``worker.without_model`` is ``"rules"``, a model that raises is a bug that stops the cycle
(:mod:`stream.quarantine`) and a missing one is waited for; unless ``worker.score_deadline_ms`` is set, nothing here
asks a clock. The rungs of recommendations are in :mod:`stream.ladder`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from queue import SimpleQueue
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from features.messages import ACTIONS
from features.scoring import FraudModel
from stream.settings import WorkerSettings

log = logging.getLogger("headrace.worker")
Floats = NDArray[np.float64]
_RUNGS = ("without_reasons", "without_model", "default_action")
_WHY = ("deadline", "failed", "missing")
# Why a decision was made with less than everything, by code: "rung:why"; 0 is none.
DEGRADED: tuple[str | None, ...] = (None, *(f"{rung}:{why}" for rung in _RUNGS for why in _WHY))
_REASONS, _MODEL, _DEFAULT = (1 + len(_WHY) * rung for rung in range(len(_RUNGS)))
_BY_DEADLINE, _BY_FAILURE, _BY_ABSENCE = range(len(_WHY))
NO_REASONS_BY_DEADLINE, NO_REASONS_BY_FAILURE = _REASONS + _BY_DEADLINE, _REASONS + _BY_FAILURE
NO_REASONS_LAST = _MODEL - 1


@dataclass(slots=True)
class Scored:
    """``score`` and ``anomaly`` float64[n], NaN where there is none; ``degraded`` int8[n], an index of ``DEGRADED``."""

    score: Floats
    anomaly: Floats
    degraded: NDArray[np.int8]


class Fallback:
    """Scores with what there is; see the module's text."""

    def __init__(self, worker: WorkerSettings) -> None:
        self.forgiving = worker.without_model == "rules"
        self._deadline_s = None if worker.score_deadline_ms is None else worker.score_deadline_ms / 1000
        self._default = ACTIONS.index(worker.default_action)
        self._unusual = worker.anomaly_review
        self._aside: _Aside | None = None
        self._late: Future[Floats] | None = None
        self._told = 0  # the last code that was logged

    def score(self, x: Floats, model: FraudModel | None, beside: Executor | None, spent_s: float) -> Scored:
        """Score the vectors of a cycle, float64[n, F], that took so many seconds until now.

        Raises
        ------
        Exception
            What the model raised, unless ``worker.without_model`` is ``"rules"``.
        """
        n = len(x)
        if not n:
            return Scored(np.zeros(0), np.zeros(0), np.zeros(0, np.int8))
        if model is None:
            return self._nothing(n, _BY_ABSENCE)
        if self._deadline_s is not None:
            return self._in_time(x, model, self._deadline_s - spent_s)
        try:
            score, anomaly = model.score_many(x, beside)
        except Exception as error:
            if not self.forgiving:
                raise
            return self._one_by_one(x, model, error)
        return self._checked(score, anomaly)

    def act(self, scored: Scored, action: NDArray[np.int8]) -> None:
        """Put into ``action`` int8[n] that of what has no score: by the anomaly, or the default."""
        without = scored.degraded >= _MODEL
        usual = without & ~np.isnan(scored.anomaly)
        action[usual] = (scored.anomaly[usual] >= self._unusual).astype(np.int8)
        action[without & ~usual] = self._default

    def settle(self, scored: Scored, ruled: NDArray[np.bool_] | None) -> None:
        """Say on which rung each decision was made, after the rules; ``ruled`` bool[n]: one that counts has hit.

        A score or an anomaly that is missing is published as 0.
        """
        without = scored.degraded >= _MODEL
        alone = without & np.isnan(scored.anomaly)
        if ruled is not None:
            alone &= ~ruled
        scored.degraded[alone] += _DEFAULT - _MODEL
        scored.score[without] = 0.0
        scored.anomaly[np.isnan(scored.anomaly)] = 0.0

    def late(self, spent_s: float) -> bool:
        """Whether the deadline of a cycle that took so many seconds has passed."""
        return self._deadline_s is not None and spent_s > self._deadline_s

    def tell(self, code: int, error: BaseException | None = None) -> None:
        """Log that decisions are made with less, once for as long as nothing else is the matter."""
        if code != self._told:
            self._told = code
            log.error("decisions are made with less than everything: %s", DEGRADED[code], exc_info=error)

    # -- the supervised model -----------------------------------------------------------------------------------

    def _checked(self, score: Floats, anomaly: Floats) -> Scored:
        degraded = np.zeros(len(score), np.int8)
        good = np.isfinite(score)
        if good.all():
            self._told = 0
        else:
            if not self.forgiving:
                raise FloatingPointError(f"the model gave no score for {np.count_nonzero(~good)} of {len(good)}")
            self.tell(_MODEL + _BY_FAILURE)
            score = np.where(good, score, np.nan)
            degraded[~good] = _MODEL + _BY_FAILURE
        return Scored(score, anomaly, degraded)

    def _nothing(self, n: int, why: int, anomaly: Floats | None = None) -> Scored:
        self.tell(_MODEL + why)
        unknown = np.full(n, np.nan)
        return Scored(unknown, unknown.copy() if anomaly is None else anomaly, np.full(n, _MODEL + why, np.int8))

    def _one_by_one(self, x: Floats, model: FraudModel, error: Exception) -> Scored:
        """The model raised: each row alone, so that those it can score are scored."""
        self.tell(_MODEL + _BY_FAILURE, error)
        score = np.full(len(x), np.nan)
        for i in range(len(x)):
            try:
                score[i] = model.probability_many(x[i : i + 1])[0]
            except Exception:
                log.debug("the model raised at row %d of %d", i, len(x), exc_info=True)
        return self._checked(score, self._anomaly(x, model))

    def _anomaly(self, x: Floats, model: FraudModel) -> Floats:
        try:
            return model.anomaly_many(x)
        except Exception:
            if not self.forgiving:
                raise
            log.debug("the anomaly model raised", exc_info=True)
            return np.full(len(x), np.nan)

    def _in_time(self, x: Floats, model: FraudModel, left_s: float) -> Scored:
        """The trees in another thread, which is left alone when they take too long; the forest meanwhile in this."""
        start, walking = perf_counter(), None
        if self._late is not None and self._late.done():
            self._late = None
        if self._late is None and left_s > 0.0:
            self._aside = self._aside or _Aside()
            walking = self._aside.submit(lambda: model.probability_many(x))
        anomaly = self._anomaly(x, model)
        if walking is None:
            return self._nothing(len(x), _BY_DEADLINE, anomaly)
        try:
            score = walking.result(timeout=max(0.0, left_s - (perf_counter() - start)))
        except TimeoutError:
            self._late = walking
            return self._nothing(len(x), _BY_DEADLINE, anomaly)
        except Exception as error:
            if not self.forgiving:
                raise
            return self._one_by_one(x, model, error)
        return self._checked(score, anomaly)


class _Aside:
    """One thread that does one thing after the other. It ends with the process, whatever it hangs in."""

    def __init__(self) -> None:
        self._work: SimpleQueue[tuple[Callable[[], Floats], Future[Floats]]] = SimpleQueue()
        threading.Thread(target=self._run, name="headrace-scoring", daemon=True).start()

    def submit(self, work: Callable[[], Floats]) -> Future[Floats]:
        """Have it done; the future says when."""
        future: Future[Floats] = Future()
        self._work.put((work, future))
        return future

    def _run(self) -> None:
        while True:
            work, future = self._work.get()
            try:
                future.set_result(work())
            except BaseException as error:  # the one who waits raises it
                future.set_exception(error)
