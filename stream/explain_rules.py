"""The rules of one past decision, asked again about its replayed vector.

In: the rules' file in force, what lists hold (``NAME=FILE``), the decision as it was published, its vector. Out:
:class:`RulesAgain`. Reads the file alone.

Whether the file is the one that decided is told by its version, a hash of the text. Lists lie in Redis and change; a
rule that asks one of which it was not said what it held is left out, and so is the action where it could decide it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features import costs
from features.catalogue import Catalogue
from features.costs import Costs
from features.messages import ACTIONS
from features.rule_machine import Columns
from features.rules import Rules
from features.scoring import by_thresholds
from stream.deciding import amount_column
from stream.past_vector import PastVector
from stream.rule_report import held
from stream.settings import WorkerSettings


@dataclass(frozen=True, slots=True)
class RulesAgain:
    """What the rules of ``file`` say now.

    ``recorded`` is the version that the decision names, None if it names none. ``hit`` and ``shadow`` are names of
    rules, ``left_out`` those that ask a list of which nothing is known, ``lists`` these lists. ``action``: what comes
    of rules and score; None where that cannot be told. ``differs``: what is not as it was published, although the file
    is the one that decided.
    """

    file: str
    version: str
    recorded: str | None
    hit: list[str]
    shadow: list[str]
    left_out: list[str]
    lists: list[str]
    action: str | None
    differs: list[str]

    @property
    def same_file(self) -> bool:
        """Whether these are the rules that decided."""
        return self.version == self.recorded


def rules_again(file: Path, lists: Sequence[str], catalogue: Catalogue, worker: WorkerSettings,
                published: Mapping[str, Any], past: PastVector, model: tuple[float, float],
                thresholds: tuple[float, float]) -> RulesAgain:  # fmt: skip
    """Ask them.

    Parameters
    ----------
    published :
        The decision.
    model : (float, float)
        Score and anomaly of the vector.
    thresholds : (float, float)
        For review and for blocking, in force then.

    Raises
    ------
    SettingsError
        If the rules or a list cannot be used.
    """
    rules = Rules.load(file, catalogue)
    known = held(rules, lists)
    x = np.ascontiguousarray(past.x.reshape(1, -1))
    without = (published["degraded"] or "").startswith(("without_model:", "default_action:"))
    score, anomaly = np.array([[value] for value in model])
    if without:  # the rules saw no score, and no anomaly where none was published
        score, anomaly = np.array([np.nan]), np.array([published["anomaly"] or np.nan])
    time = np.array([int(published["event_time"].timestamp() * 1000)], np.int64)
    hits = rules.evaluate(Columns(x, score, anomaly, time, past.texts.reshape(1, -1)), rules.sets(known))
    unknown = set(rules.lists) - set(known)
    left_out = [rule.name for rule in rules.rules if unknown & {*rule.reads}]
    hit, shadow = ([name for name in names if name not in left_out] for names in rules.named(hits.matrix[0]))
    decides = [rule.name for rule in rules.rules if rule.name in left_out and not rule.shadow]
    action = None
    if not without and not published["duplicate"] and not decides:
        action = ACTIONS[int(hits.applied(_by_model(catalogue, worker, x, score, thresholds))[0])]
    asked = sorted(unknown & {name for rule in rules.rules for name in rule.reads})
    again = RulesAgain(str(file), rules.version, published["rules_version"], hit, shadow, left_out, asked,
                       action, [])  # fmt: skip
    if again.same_file:
        again.differs.extend(_differences(again, published))
    return again


def _by_model(catalogue: Catalogue, worker: WorkerSettings, x: NDArray[np.float64], score: NDArray[np.float64],
              thresholds: tuple[float, float]) -> NDArray[np.int8]:  # fmt: skip
    """What the policy of the settings makes of the score."""
    if worker.cost_review is None and worker.cost_block is None:
        return by_thresholds(score, *thresholds)
    schema = catalogue.schema
    amount = x[:, catalogue.names.index(f"event_{schema.numeric[amount_column(worker, schema)].name}")]
    return costs.decide(Costs(worker.cost_review, worker.cost_block, worker.cost_recovered), score, amount)[0]


def _differences(again: RulesAgain, published: Mapping[str, Any]) -> list[str]:
    found = []
    for name, ours in (("rules", again.hit), ("shadow_rules", again.shadow)):
        told = [rule for rule in published[name] or [] if rule not in again.left_out]
        if sorted(told) != sorted(ours):
            found.append(f"{name}: published {_list(told)}, asked again {_list(ours)}")
    if again.action is not None and again.action != published["action"]:
        found.append(f"action: published {published['action']}, asked again {again.action}")
    return found


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def told(again: RulesAgain) -> list[str]:
    """For people, in lines."""
    which = "the rules that decided"
    if not again.same_file:
        recorded = "names no version of rules" if again.recorded is None else f"was made with version {again.recorded}"
        which = f"NOT the rules that decided: the decision {recorded}, so what follows is what they would say now"
    lines = [f"{again.file}, version {again.version}: {which}"]
    lines += [f"asked again, these hit: {_list(again.hit)}" + (f"; in shadow {_list(again.shadow)}"
                                                               if again.shadow else "")]  # fmt: skip
    if again.left_out:
        lines.append(f"left out, since it is not known what {_list(again.lists)} held then (--list NAME=FILE): "
                     f"{_list(again.left_out)}")  # fmt: skip
    if again.action is not None:
        lines.append(f"with them the action is {again.action}")
    return lines
