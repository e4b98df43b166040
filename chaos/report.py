"""The tables of ``docs/guarantees.md`` from results: ``python -m chaos.report chaos.json [mutations.json]``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def faults_table(results: Sequence[dict[str, Any]]) -> str:
    """One row for each fault."""
    rows = ["| fault | rounds | inputs | twice | recovery | invariants |", "|---|---|---|---|---|---|"]
    for result in sorted(results, key=lambda found: int(found["fault"])):
        recovery = "" if result["recovery_s"] is None else f"{result['recovery_s']:.1f} s"
        verdict = "hold" if result["passed"] else "**violated**"
        rows.append(f"| {result['fault']} {result['title']} | {result['rounds']} | {result['inputs']:,} | "
                    f"{result['duplicates']} | {recovery} | {verdict} |")  # fmt: skip
    return "\n".join(rows)


def mutations_table(results: Sequence[dict[str, Any]]) -> str:
    """One row for each mutation."""
    rows = ["| mutation | what it does | caught by |", "|---|---|---|"]
    rows += [f"| `{found['mutation']}` | {found['what']} | {_caught(found)} |" for found in results]
    return "\n".join(rows)


def _caught(found: dict[str, Any]) -> str:
    return f"fault {found['fault']}" if found["caught"] else f"**not caught** by fault {found['fault']}"


def main(paths: Sequence[str]) -> None:
    """Print the tables of the files."""
    for path, table in zip(paths, (faults_table, mutations_table), strict=False):
        print(table(json.loads(Path(path).read_text(encoding="utf-8"))), end="\n\n")


if __name__ == "__main__":
    main(sys.argv[1:])
