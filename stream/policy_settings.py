"""Which settings of the decision policy do not go together. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stream.settings import WorkerSettings


def contradictions(worker: WorkerSettings) -> Iterator[str]:
    """Each of thresholds, alert budget and costs decides alone what is reviewed."""
    costs = [name for name in ("cost_review", "cost_block") if getattr(worker, name) is not None]
    if worker.cases_per_day is not None and costs:
        yield (
            f"worker.cases_per_day = {worker.cases_per_day} and worker.{costs[0]} = {getattr(worker, costs[0])}: "
            "expected one of the two; an alert budget and costs would both decide what is reviewed"
        )
    if worker.cases_per_day is not None and worker.review_score is not None:
        yield (
            f"worker.review_score = {worker.review_score}: expected none with worker.cases_per_day = "
            f"{worker.cases_per_day}, which sets the review threshold itself"
        )
    for name in ("review_score", "block_score"):
        if costs and getattr(worker, name) is not None:
            yield (
                f"worker.{name} = {getattr(worker, name)}: expected none with worker.{costs[0]}; costs decide what is "
                "reviewed and blocked"
            )
    if not costs and worker.cost_amount is not None:
        yield f"worker.cost_amount = {worker.cost_amount!r}: expected worker.cost_review or worker.cost_block too"
