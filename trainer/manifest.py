"""The manifest of an artifact: what was fitted, on what, how well, and the SHA-256 of every file.

In: values or the bytes of ``manifest.json``. Out: the other of the two. Pure.

The manifest's own ``sha256`` covers everything else in it, and its bytes must be exactly those that this module
writes, so that a flipped bit anywhere is found.
"""

from __future__ import annotations

import hashlib

import msgspec

from features.catalogue import Feature
from features.errors import ArtifactCorrupt
from trainer.durable import Buffer

FORMAT = 2
FRAUD, ISOLATION, GOLDEN = "fraud.txt", "isolation.npz", "golden.npz"
RECOMMENDER, RANKER = "recommender.npz", "ranker.txt"
FILES = (FRAUD, ISOLATION, RECOMMENDER, RANKER, GOLDEN)


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """SHA-256 (hexadecimal) and size of one file."""

    sha256: str
    bytes: int


class ThresholdEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Scores from which a transaction is reviewed and blocked."""

    review: float
    block: float


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an artifact says about itself; ``features`` and ``thresholds`` are empty without fraud models.

    ``training`` says on what was fitted (times in epoch ms, counts of rows), ``metrics`` how well by model.
    """

    format: int
    version: str
    created_ms: int
    schema_hash: str
    features: tuple[Feature, ...]
    training: dict[str, int | None]
    metrics: dict[str, dict[str, float | None]]
    thresholds: ThresholdEntry | None
    files: dict[str, FileEntry]
    sha256: str = ""


def digest(data: Buffer) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def encode(manifest: Manifest) -> bytes:
    """The bytes of ``manifest.json``, with the manifest's own hash filled in."""
    # A whole number where the type says float would come back as another text: so there and back first.
    manifest = msgspec.json.decode(msgspec.json.encode(manifest), type=Manifest)
    bare = msgspec.json.encode(msgspec.structs.replace(manifest, sha256=""), order="deterministic")
    sealed = msgspec.structs.replace(manifest, sha256=digest(bare))
    return msgspec.json.format(msgspec.json.encode(sealed, order="deterministic"), indent=2) + b"\n"


def decode(data: bytes, version: str) -> Manifest:
    """The manifest in ``data``, which must be whole and that of ``version``.

    Raises
    ------
    ArtifactCorrupt
        If a single bit differs from what was published, or the format is another one.
    """
    again = "Publish a new version with `headrace train`."
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactCorrupt(f"artifact {version}: manifest.json cannot be read: {error}. {again}") from None
    if manifest.format != FORMAT:
        raise ArtifactCorrupt(f"artifact {version}: format {manifest.format}; this program reads {FORMAT}. {again}")
    if manifest.version != version:
        raise ArtifactCorrupt(f"artifact {version}: manifest.json is that of version {manifest.version!r}. {again}")
    if encode(manifest) != data:
        raise ArtifactCorrupt(f"artifact {version}: manifest.json was changed after it was published. {again}")
    files = set(manifest.files)
    pairs = ((FRAUD, ISOLATION), (RECOMMENDER, RANKER))
    if not files <= set(FILES) or GOLDEN not in files or any((a in files) != (b in files) for a, b in pairs):
        raise ArtifactCorrupt(f"artifact {version}: manifest.json lists files {sorted(manifest.files)}. {again}")
    return manifest
