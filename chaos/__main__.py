"""The suite: ``python -m chaos [--seed N] [--rounds N] [--faults 1,2,3] [--out FILE]``; ``make chaos`` runs it.

Prints one line for each fault, and writes JSON: a list of objects with fault, rounds, inputs, duplicates, recovery_s
(the longest of its rounds), passed and violations. Ends with 1 if an invariant was broken.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

from chaos.play import Arena
from chaos.registry import Fault, faults
from chaos.stage import arena


def play_fault(stage: Arena, fault: Fault, rounds: int, seed: int) -> dict[str, Any]:
    """All rounds of one fault; what breaks off is a violation too."""
    rounds = 1 if fault.once else rounds
    inputs = duplicates = differing = 0
    recoveries: list[float] = []
    violations: list[str] = []
    notes: list[str] = []
    start = monotonic()
    for turn in range(1, rounds + 1):
        play = stage.round(fault.number, seed, turn)
        try:
            fault.play(play)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            play.verdict.violations.append(f"broke off: {error!r} ({Path(where.filename).name}:{where.lineno})")
        finally:
            play.close()
        violations += [f"round {turn}: {text}" for text in play.verdict.violations]
        inputs, duplicates = inputs + play.verdict.inputs, duplicates + play.verdict.duplicates
        differing += play.verdict.differing
        recoveries += play.recoveries
        notes += play.notes
    return {
        "fault": fault.number,
        "title": fault.title,
        "rounds": rounds,
        "inputs": inputs,
        "duplicates": duplicates,
        "differing": differing,
        "recovery_s": round(max(recoveries), 2) if recoveries else None,
        "seconds": round(monotonic() - start, 1),
        "passed": not violations,
        "violations": violations,
        "notes": notes,
    }


def line(result: dict[str, Any]) -> str:
    """A fault's result in one line."""
    recovery = "-" if result["recovery_s"] is None else f"{result['recovery_s']:.2f}"
    verdict = "I1 I2 I3 I4 I5 hold" if result["passed"] else f"VIOLATED: {result['violations'][0]}"
    return (f"{result['fault']:>3}  {result['title']:<58}  {result['rounds']:>2} rounds  {result['inputs']:>7} inputs  "
            f"{result['duplicates']:>4} twice  {recovery:>6} s  {verdict}")  # fmt: skip


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
    else:
        with tempfile.TemporaryDirectory(prefix="headrace-chaos-") as name:
            yield Path(name)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description="Faults on real Kafka and Redis.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--faults", default="", help="numbers with commas between them; all by default")
    parser.add_argument("--short", action="store_true", help="the selection of `make test`")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    parser.add_argument("--keep", type=Path, help="keep logs and data in this directory")
    parser.add_argument("--models", type=Path, help="a directory that keeps the fitted models")
    given = parser.parse_args(arguments)
    known = faults()
    wanted = [int(number) for number in given.faults.split(",") if number] or list(known)
    if unknown := [number for number in wanted if number not in known]:
        parser.error(f"no fault {unknown}; there are {list(known)}")
    results: list[dict[str, Any]] = []
    with _folder(given.keep) as folder, arena(folder, given.models) as stage:
        for number in wanted:
            if given.short and not known[number].short:
                continue
            results.append(play_fault(stage, known[number], given.rounds, given.seed))
            print(line(results[-1]), flush=True)
            for text in results[-1]["notes"]:
                print(f"     {text}", flush=True)
            if given.out is not None:
                given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for result in results:
        for text in result["violations"]:
            print(f"fault {result['fault']}: {text}", file=sys.stderr)
    return 0 if all(result["passed"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
