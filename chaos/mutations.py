"""Breaks the worker on purpose: ``python -m chaos.mutations [--only NAME,...] [--out FILE]``, or ``make mutations``.

Each mutation is a small change of the source that a hurried hand might make. It is applied to a copy of the tree, and
the fault that it names must find a violation there. A suite that no mutation can make fail shows nothing. Ends with 1
if one is not caught.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_COPIED = ("features", "trainer", "stream", "tests", "chaos")
_RUN_S = 900.0


@dataclass(frozen=True, slots=True)
class Mutation:
    """A change: which file, what stands there and what in its place; the fault that must catch it, and by which sign.

    ``sign`` is part of a violation that only the mutation explains: a machine too slow to start a worker shows nothing.
    """

    name: str
    what: str
    fault: int
    sign: str
    edits: tuple[tuple[str, str, str], ...]


MUTATIONS = (
    Mutation("seek-to-commit", "a partition is taken over at the committed offset, not at that of Redis",
             3, "the next owner reads from", (
        ("stream/cycle.py",
         "seeks[topic, p] = self.applied[topic, p] = fenced[p].offsets.get(topic, bounds.first.get((topic, p), 0))",
         "seeks[topic, p] = self.applied[topic, p] = bounds.committed.get((topic, p)) or 0"),)),
    Mutation("skip-removed", "records below the applied offset are taken again, and the seek is to the commit",
             3, "I3: ", (
        ("stream/cycle.py",
         "seeks[topic, p] = self.applied[topic, p] = fenced[p].offsets.get(topic, bounds.first.get((topic, p), 0))",
         "seeks[topic, p] = self.applied[topic, p] = bounds.committed.get((topic, p)) or 0"),
        ("stream/intake.py", "    if not records or records[0].offset >= offset:\n",
         "    if records or not records:\n"),
    )),
    Mutation("apply-first", "state and offset are applied before the answers are acknowledged",
             17, "I2: ", (
        ("stream/cycle.py", "positions = await self._publisher.acknowledged(pending)\n", "positions = {}\n"),
        ("stream/cycle.py", '        tally.seconds["apply"] =',
         '        _ = await self._publisher.acknowledged(pending)\n        tally.seconds["apply"] ='),)),
    Mutation("produce-error-ignored", "an answer that Kafka did not take counts as written",
             17, "an answer that is too large", (
        ("stream/publisher.py", "                raise _refusal(target[0], result)\n", "                continue\n"),)),
    Mutation("two-commands", "the head is written in one command and the state in another",
             10, "I1: ", (
        ("stream/store.py", "                commands.append(Command(key, (*head, write.fields)))\n",
         "                commands += [Command(key, head), Command(key, (\"HSET\", key, write.fields))]\n"),
        ("stream/store.py", "zip(writes, replies, strict=True):\n            if found:\n",
         "zip(writes, replies, strict=False):\n            if isinstance(found, bytes) and found:\n"),
    )),
    Mutation("state-not-read", "rows that the cache lacks are taken for new",
             1, "I1: ", (
        ("stream/station.py", "return {p: dict(zip(fields, values[p], strict=True)) for p, fields in wanted.items()}",
         "return {p: dict.fromkeys(fields) for p, fields in wanted.items() if values}"),)),
    Mutation("tails-not-read", "what was answered and not applied is not looked for",
             2, "I3: ", (
        ("stream/tails.py", "        if not open_:\n", "        if open_ or not open_:\n"),)),
    Mutation("bounds-unchecked", "an applied offset beyond the end of its topic is accepted",
             16, "empt", (
        ("stream/station.py", "        if offset > end:\n", "        if False:\n"),
        ("stream/tails.py", "            if ends[target] < position:\n", "            if False:\n"),)),
    Mutation("count-unchecked", "a topic with another partition count is accepted",
             27, "a worker that runs ends", (
        ("stream/topics.py", "    require_topics(await check_topics(settings.kafka, settings.topics))\n",
         "    await check_topics(settings.kafka, settings.topics)\n"),
        ("stream/station.py", "    if newest >= lane.partitions:\n", "    if False:\n"),)),
    Mutation("no-deadline", "nothing ends a worker whose model hangs",
             5, "exit code", (
        ("stream/deadline.py", "            os._exit(1)\n", "            pass\n"),)),
    Mutation("label-order", "a record that was answered before a crash is folded at the labels of now",
             29, "I1: ", (
        ("stream/intake.py", "            positions=positions,\n", "            positions=positions * 0,\n"),)),
    Mutation("newest-first", "the transactions of a fetch are folded from the newest to the oldest",
             1, "I4: ", (
        ("stream/intake.py", "        order = np.argsort(np.concatenate([2 * seen, 2 * good + 1]), kind=\"stable\")\n",
         "        order = np.argsort(np.concatenate([2 * seen, 2 * good + 1]), kind=\"stable\")[::-1]\n"),)),
    Mutation("no-compare-and-set", "a worker writes whatever the head in Redis is",
             6, "I1: ", (
        ("stream/store.py", "if head == ARGV[1] then\n  redis.call('HSET'", "if true then\n  redis.call('HSET'"),)),
    Mutation("cache-kept", "rows in the cache outlive a failure and a takeover",
             10, "I1: ", (
        ("stream/fraud.py", "            cache.drop(partition)\n", "            _ = cache, partition\n"),)),
    Mutation("not-adopted", "what was answered before a crash is not answered again, but decided anew in the state",
             32, "decisions in the memory", (
        ("stream/fraud.py", "                adopt_emitted(seen, decided, emitted, self.topics[0])\n",
         "                pass\n"),)),
    Mutation("budget-forgotten", "the alert budget of a partition that is taken over begins anew",
             33, "@budget", (
        ("stream/budgets.py", "Budget(self._each, values or [None] * len(FIELDS))",
         "Budget(self._each, [None] * len(FIELDS))"),)),
    Mutation("budget-skips", "what was answered before a crash counts nothing in the alert budget",
             33, "@budget", (
        ("stream/budgets.py", "                    stays[i], given[i], model[i] = True, action[i],",
         "                    stays[i], given[i], model[i] = True, SKIP,"),)),
    Mutation("positions-early", "output positions pass answers to records that are not applied yet",
             32, "I3: ", (
        ("stream/applying.py", "        if reached(offsets, station.answered.get(p, {})):\n", "        if True:\n"),)),
    Mutation("no-fence", "a takeover writes no head, and so not where the outputs ended before the first answer",
             32, "I3: ", (
        ("stream/cycle.py",
         "        await store.apply([Write(p, found[p], encode_head(fenced[p]), {}) for p in partitions])\n", ""),
        ("stream/cycle.py", "station.heads[p] = fenced[p], encode_head(fenced[p])",
         "station.heads[p] = heads[p], found[p]"),)),
)  # fmt: skip


def mutated(mutation: Mutation, directory: Path) -> None:
    """Copy the tree to ``directory`` and apply a mutation there.

    Raises
    ------
    ValueError
        If the source no longer holds what the mutation changes, exactly once.
    """
    for name in _COPIED:  # with what numba has compiled: times and sizes of the files stay
        shutil.copytree(ROOT / name, directory / name)
    for file, old, new in mutation.edits:
        path = directory / file
        text = path.read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise ValueError(f"mutation {mutation.name}: {file} holds {text.count(old)} times {old!r}, not once")
        path.write_text(text.replace(old, new), encoding="utf-8")


def run(mutation: Mutation, shared: Path, seed: int) -> dict[str, Any]:
    """Play the fault on the mutated tree; whether it was caught, and by which violation."""
    with tempfile.TemporaryDirectory(prefix="headrace-mutation-") as name:
        directory = Path(name)
        mutated(mutation, directory)
        out = directory / "result.json"
        command = [sys.executable, "-m", "chaos", "--faults", str(mutation.fault), "--seed", str(seed),
                   "--models", str(shared), "--out", str(out)]  # fmt: skip
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=_RUN_S, check=False)
        results = json.loads(out.read_text(encoding="utf-8")) if out.exists() else []
        if not results:
            raise RuntimeError(f"mutation {mutation.name}: the suite did not run: {done.stderr[-2000:]}")
    violations = results[0]["violations"]
    caught = any(mutation.sign in text for text in violations)
    return {"mutation": mutation.name, "what": mutation.what, "fault": mutation.fault, "caught": caught,
            "violations": violations}  # fmt: skip


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m chaos.mutations", description="Can the suite fail?")
    parser.add_argument("--only", default="", help="names with commas between them; all by default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--models", type=Path, help="a directory that keeps the fitted models")
    given = parser.parse_args()
    wanted = [mutation for mutation in MUTATIONS if not given.only or mutation.name in given.only.split(",")]
    results = []
    with tempfile.TemporaryDirectory(prefix="headrace-mutations-") as name:
        shared = given.models or Path(name)
        for mutation in wanted:
            result = run(mutation, shared, given.seed)
            results.append(result)
            shown = [text for text in result["violations"] if mutation.sign in text] or result["violations"]
            verdict = f"{'caught' if result['caught'] else 'NOT CAUGHT'}: {(shown or ['no violation'])[0][:150]}"
            print(f"{mutation.name:<22} fault {mutation.fault:>2}  {verdict}", flush=True)
            if given.out is not None:
                given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0 if all(result["caught"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
