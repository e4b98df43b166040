"""A selection of the chaos suite, one round each on real Kafka and Redis. `make chaos` plays all of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chaos.__main__ import play_fault
from chaos.play import Arena
from chaos.registry import faults
from chaos.stage import arena
from tests.conftest import give_up
from tests.servers import Unavailable

_SHORT = [number for number, fault in faults().items() if fault.short]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    try:
        with arena(tmp_path_factory.mktemp("chaos")) as found:
            yield found
    except Unavailable as reason:
        give_up(str(reason))


@pytest.mark.parametrize("number", _SHORT)
def test_the_invariants_hold_through_the_fault(number: int, stage: Arena) -> None:
    result = play_fault(stage, faults()[number], rounds=1, seed=1)
    assert result["passed"], result["violations"]
    assert result["inputs"] > 0 or result["recovery_s"] is None
