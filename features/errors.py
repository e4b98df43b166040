"""Every error that Headrace raises on purpose.

::

    HeadraceError
    ├── SettingsError          settings or schema that cannot be used; holds all problems at once
    ├── HistoryError           a history file that is missing, empty or unreadable
    ├── ArtifactError          a model directory that must not be served
    │   ├── ArtifactMissing        no artifact, or no pointer to one
    │   ├── ArtifactCorrupt        a file's SHA-256 or the manifest's form is wrong
    │   └── ArtifactMismatch       fitted for another feature schema
    ├── TrainingError          a fit that cannot succeed on the data at hand
    ├── StateError             entity state that must not be used or overwritten
    │   ├── StateConflict          another worker moved the applied offsets: this one is a zombie
    │   ├── StateMissing           Redis is empty although the group has committed offsets
    │   └── StateMismatch          state of another feature schema or partition count
    ├── TopicError             topics that are missing or of the wrong shape
    ├── ArchiveError           an archive that does not fit the topics, or lacks what is needed of it
    ├── ServiceUnavailable     Kafka, Redis or the archive cannot be reached (worth a retry)
    │   ├── RedisUnavailable       Redis it is
    │   └── ArchiveUnavailable     the filesystem of the archive it is
    ├── ComputeFailed          a bug of ours met in a cycle; the record that it needs is being looked for
    └── BadEvent               one input record that cannot be decided; becomes a dead letter

A message names the value, the limit and the way out.
"""

from __future__ import annotations

from collections.abc import Sequence


class HeadraceError(Exception):
    """Base of every error raised on purpose; its text is fit to be shown to a user as it is."""


class SettingsError(HeadraceError):
    """Settings or a schema that cannot be used. ``problems`` lists all of them, not just the first."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class HistoryError(HeadraceError):
    """A history file that is missing, empty or unreadable."""


class ArtifactError(HeadraceError):
    """A model directory that must not be served."""


class ArtifactMissing(ArtifactError):
    """No artifact, or no pointer to one."""


class ArtifactCorrupt(ArtifactError):
    """A file's SHA-256 or the manifest's form is wrong."""


class ArtifactMismatch(ArtifactError):
    """The artifact was fitted for another feature schema."""


class TrainingError(HeadraceError):
    """A fit that cannot succeed on the data at hand."""


class StateError(HeadraceError):
    """Entity state that must not be used or overwritten."""


class StateConflict(StateError):
    """Another worker moved the applied offsets; this one must let go of the partition."""


class StateMissing(StateError):
    """Redis holds nothing although the consumer group has committed offsets."""


class StateMismatch(StateError):
    """State written for another feature schema or partition count."""


class TopicError(HeadraceError):
    """Topics that are missing or of the wrong shape."""


class ArchiveError(HeadraceError):
    """An archive that does not fit the topics, or lacks what is needed of it."""


class ServiceUnavailable(HeadraceError):
    """Kafka, Redis or the archive cannot be reached; worth a retry."""


class RedisUnavailable(ServiceUnavailable):
    """Redis cannot be reached, or refused a command."""


class ArchiveUnavailable(ServiceUnavailable):
    """The filesystem of the archive cannot be reached, or refused an operation."""


class ComputeFailed(HeadraceError):
    """Our own code raised while a cycle was computed; its records are read again in smaller cycles."""


class BadEvent(HeadraceError):
    """One input record that cannot be decided.

    ``code`` is the machine-readable reason of the dead letter, the message its sentence.
    """

    def __init__(self, code: str, sentence: str) -> None:
        self.code = code
        super().__init__(sentence)
