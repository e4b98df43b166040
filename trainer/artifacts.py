"""Artifacts: directories of models that are published whole, verified before use, and never changed.

In: fitted models, or a directory. Out: the other of the two. State: the directory::

    <root>/CURRENT               the version to serve, replaced by rename
    <root>/<version>/            manifest.json, fraud.txt, isolation.npz, recommender.npz, ranker.txt,
                                 golden.npz

A version appears by one rename, so a reader sees all of it or nothing; the pointer moves afterwards. Nothing is
pickled. Every file is hashed before it is parsed, so that damage is told from a model that is merely bad;
:class:`Verification` tries a version in another process before a live worker takes it.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features.errors import ArtifactCorrupt, ArtifactError, ArtifactMismatch, ArtifactMissing
from features.forest import FlatForest
from features.recommender import Recommender
from features.scoring import FraudModel, Thresholds
from trainer import durable, golden
from trainer.durable import Arrays, Buffer, npz_arrays, npz_bytes
from trainer.manifest import (
    FORMAT,
    FRAUD,
    GOLDEN,
    ISOLATION,
    RANKER,
    RECOMMENDER,
    FileEntry,
    Manifest,
    ThresholdEntry,
    digest,
)
from trainer.manifest import decode as decode_manifest
from trainer.manifest import encode as encode_manifest

_VERSION = re.compile(r"\d{6,18}\Z")
_EXIT_CODES: dict[type[ArtifactError], int] = {ArtifactMissing: 3, ArtifactCorrupt: 4, ArtifactMismatch: 5}


@dataclass(frozen=True, slots=True)
class Draft:
    """What is to be published: fraud models, a recommender, or both, with inputs for the golden answers.

    ``vectors`` float64[g, F] and ``sessions`` (hashes uint64[q, L], counts int64[q]) belong to ``fraud`` and
    ``recommender``.
    """

    schema_hash: str
    fraud: FraudModel | None = None
    recommender: Recommender | None = None
    training: dict[str, int | None] = field(default_factory=dict)
    metrics: dict[str, dict[str, float | None]] = field(default_factory=dict)
    vectors: NDArray[np.float64] | None = None
    sessions: tuple[NDArray[np.uint64], NDArray[np.int64]] | None = None


@dataclass(frozen=True, slots=True)
class Artifact:
    """A version as loaded: its models (at least one), its manifest, and the golden answers."""

    version: str
    manifest: Manifest
    fraud: FraudModel | None
    recommender: Recommender | None
    golden: Arrays


def versions(root: Path) -> list[str]:
    """All published versions, oldest first."""
    if not root.is_dir():
        return []
    return sorted((path.name for path in root.iterdir() if _VERSION.match(path.name) and path.is_dir()), key=int)


def current_version(root: Path) -> str | None:
    """The version that the pointer names; ``None`` if nothing was published yet.

    Raises
    ------
    ArtifactCorrupt
        If the pointer does not hold a version.
    """
    try:
        text = (root / "CURRENT").read_text(encoding="ascii")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (UnicodeDecodeError, OSError) as error:
        raise ArtifactCorrupt(f"{root / 'CURRENT'} cannot be read: {error}") from None
    version = text.removesuffix("\n")
    if not _VERSION.match(version):
        raise ArtifactCorrupt(f"{root / 'CURRENT'} holds {text[:40]!r}, not a version such as '000001'")
    return version


def publish(root: Path, draft: Draft, *, created_ms: int, keep: int = 5, pinned: Collection[str] = ()) -> str:
    """Write a new version, point to it, and remove versions older than the newest ``keep`` that are not ``pinned``.

    A crash at any moment leaves the old version in place, or the new one whole.

    Returns
    -------
    str
        The new version, one higher than any before.

    Raises
    ------
    ArtifactError
        If the directory cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with durable.exclusive_scratch(root) as scratch:
            version = _next_version(root)
            _write_version(scratch, _files(draft), draft, version, created_ms)
            scratch.replace(root / version)
            durable.sync(root)
            point_to(root, version)
            for old in versions(root)[: -max(1, keep)]:
                if old not in pinned:
                    shutil.rmtree(root / old, ignore_errors=True)
    except OSError as error:
        raise ArtifactError(f"{root}: cannot publish: {error}") from error
    return version


def _next_version(root: Path) -> str:
    known = versions(root)
    try:
        # Also where somebody removed the directory: a decision's version must never mean two models.
        known.append(current_version(root) or "0")
    except ArtifactCorrupt:
        known.append("0")
    return f"{max(map(int, known)) + 1:06d}"


def point_to(root: Path, version: str) -> None:
    """Make ``version`` the one to serve, at once for every reader."""
    durable.replace(root / "CURRENT", f"{version}\n".encode())


def _files(draft: Draft) -> dict[str, bytes]:
    if draft.fraud is None and draft.recommender is None:
        raise ValueError("nothing to publish: neither fraud models nor a recommender")
    asked = (draft.vectors is None or not len(draft.vectors), draft.sessions is None or not len(draft.sessions[0]))
    if any(model and nothing for model, nothing in zip((draft.fraud, draft.recommender), asked, strict=True)):
        raise ValueError("a model without inputs for its golden answers could not be verified")
    files = {}
    if draft.fraud is not None:
        files[FRAUD] = draft.fraud.text.encode()
        files[ISOLATION] = npz_bytes(draft.fraud.forest.to_arrays())
    if draft.recommender is not None:
        files[RECOMMENDER] = npz_bytes(draft.recommender.to_arrays())
        files[RANKER] = draft.recommender.ranker.encode()
    files[GOLDEN] = npz_bytes(golden.golden_answers(draft.fraud, draft.recommender, draft.vectors, draft.sessions))
    return files


def _write_version(folder: Path, files: dict[str, bytes], draft: Draft, version: str, created_ms: int) -> None:
    fraud = draft.fraud
    manifest = Manifest(
        format=FORMAT,
        version=version,
        created_ms=created_ms,
        schema_hash=draft.schema_hash,
        features=fraud.features if fraud else (),
        training=draft.training,
        metrics=draft.metrics,
        thresholds=ThresholdEntry(fraud.thresholds.review, fraud.thresholds.block) if fraud else None,
        files={name: FileEntry(digest(data), len(data)) for name, data in files.items()},
    )
    for name, data in {**files, "manifest.json": encode_manifest(manifest)}.items():
        durable.write(folder / name, data)
    durable.sync(folder)


def load(root: Path, version: str, schema_hash: str, *, shared: bool = False) -> Artifact:
    """Read one version; every file is hashed before anything parses it.

    With ``shared`` the arrays of the recommender stay in their file, mapped: processes of one host have them once.

    Raises
    ------
    ArtifactMissing
        If there is no such version, or one of its files is gone.
    ArtifactCorrupt
        If a file is not what was published.
    ArtifactMismatch
        If it was fitted for another schema.
    """
    folder = root / version
    if not _VERSION.match(version) or not folder.is_dir():
        raise ArtifactMissing(f"{root}: there is no version {version!r}. Train one with `headrace train`.")
    manifest = decode_manifest(bytes(_read(folder / "manifest.json")), version)
    if manifest.schema_hash != schema_hash:
        raise ArtifactMismatch(
            f"artifact {version} was fitted for schema {manifest.schema_hash[:12]}, this one is {schema_hash[:12]}. "
            "Train again with `headrace train`, or serve with the schema that it was fitted for."
        )
    files = {
        name: _verified(folder / name, entry, version, shared=shared and name == RECOMMENDER)
        for name, entry in manifest.files.items()
    }
    try:
        fraud = _fraud(files, manifest) if FRAUD in files else None
        recommender = _recommender(files) if RECOMMENDER in files else None
        answers = npz_arrays(files[GOLDEN])
    except (ValueError, OSError, EOFError, KeyError, struct.error, zipfile.BadZipFile) as error:
        raise ArtifactCorrupt(f"artifact {version}: {error}. Publish a new version with `headrace train`.") from error
    if fraud is None and recommender is None:
        raise ArtifactCorrupt(f"artifact {version} holds no model. Publish a new version with `headrace train`.")
    return Artifact(version, manifest, fraud, recommender, answers)


def load_current(root: Path, schema_hash: str) -> Artifact:
    """The version that the pointer names; errors as :func:`current_version` and :func:`load`."""
    version = current_version(root)
    if version is None:
        raise ArtifactMissing(f"{root}: no models were published yet. Train some with `headrace train`.")
    return load(root, version, schema_hash)


def check_golden(artifact: Artifact) -> None:
    """Ask the loaded models what they were asked when published; :class:`ArtifactCorrupt` if they answer otherwise."""
    golden.compare(artifact.version, artifact.fraud, artifact.recommender, artifact.golden)


class Verification:
    """Another process that loads a version and asks it its golden questions, and that may die of it.

    Use it as a context manager, so that the process ends with the block. ``nice``: by how much it steps back behind
    what decides at this moment.

    Examples
    --------
    ::

        with Verification(root, version, schema_hash) as verification:
            ...  # whatever else there is to do meanwhile
            verification.wait()
    """

    def __init__(self, root: Path, version: str, schema_hash: str, *, nice: int = 0) -> None:
        # The child imports what this process runs, wherever it was imported from; -P keeps the current directory out.
        paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        command = [sys.executable, "-P", "-m", "trainer.artifacts", "verify", str(root.resolve()), version, schema_hash,
                   str(nice)]  # fmt: skip
        self._version = version
        self._child = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def __enter__(self) -> Verification:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.communicate()

    @property
    def ended(self) -> bool:
        """Whether the process has ended, with a verdict or without."""
        return self._child.poll() is not None

    def wait(self, timeout_s: float = 60.0) -> None:
        """Wait for the verdict. Blocks.

        Raises
        ------
        ArtifactMissing, ArtifactCorrupt, ArtifactMismatch
            As :func:`load` and :func:`check_golden`; also if the process crashes or does not finish in time.
        """
        try:
            _, text = self._child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise ArtifactCorrupt(f"artifact {self._version} could not be verified within {timeout_s:g} s") from None
        code, said = self._child.returncode, text.strip().splitlines()
        if code == 0:
            return
        for kind, exit_code in _EXIT_CODES.items():
            if code == exit_code and said:
                raise kind(said[-1])
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise ArtifactCorrupt(f"artifact {self._version}: verification died with {cause}: {' '.join(said)[-300:]}")


def verify_in_child(root: Path, version: str, schema_hash: str, timeout_s: float = 60.0) -> None:
    """Verify a version while others are in use: decisions go first. Blocks; errors as :meth:`Verification.wait`."""
    with Verification(root, version, schema_hash, nice=10) as verification:
        verification.wait(timeout_s)


def _fraud(files: dict[str, Buffer], manifest: Manifest) -> FraudModel:
    if manifest.thresholds is None:
        raise ValueError("the manifest has no thresholds")
    thresholds = Thresholds(manifest.thresholds.review, manifest.thresholds.block)
    forest = FlatForest.from_arrays(npz_arrays(files[ISOLATION]))
    return FraudModel(str(files[FRAUD], "utf-8"), forest, manifest.features, thresholds, manifest.version)


def _recommender(files: dict[str, Buffer]) -> Recommender:
    return Recommender.from_arrays(npz_arrays(files[RECOMMENDER]), str(files[RANKER], "utf-8"))


def _verified(path: Path, entry: FileEntry, version: str, *, shared: bool) -> Buffer:
    data = _read(path, shared=shared)
    if len(data) != entry.bytes or digest(data) != entry.sha256:
        raise ArtifactCorrupt(
            f"artifact {version}: {path.name} is not what was published ({len(data):,} bytes, SHA-256 "
            f"{digest(data)[:12]}; expected {entry.bytes:,} and {entry.sha256[:12]}). "
            "Publish a new version with `headrace train`."
        )
    return data


def _read(path: Path, *, shared: bool = False) -> Buffer:
    try:
        return durable.mapped(path) if shared else path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactMissing(f"{path} is missing. Publish a new version with `headrace train`.") from None
    except OSError as error:
        raise ArtifactMissing(f"{path} cannot be read: {error}") from None


def main(arguments: Sequence[str]) -> int:
    """``verify ROOT VERSION SCHEMA_HASH NICE``: the child of :class:`Verification`. Says by exit code what is wrong."""
    if len(arguments) != 5 or arguments[0] != "verify":
        print("usage: python -m trainer.artifacts verify ROOT VERSION SCHEMA_HASH NICE", file=sys.stderr)
        return 2
    os.nice(int(arguments[4]))
    try:
        check_golden(load(Path(arguments[1]), arguments[2], arguments[3]))
    except ArtifactError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return _EXIT_CODES.get(type(error), 1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
