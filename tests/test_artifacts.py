"""Artifacts are published whole, verified before use, and every kind of damage is refused with its reason."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from features.errors import ArtifactCorrupt, ArtifactError, ArtifactMismatch, ArtifactMissing
from features.scoring import FraudModel
from stream.metrics import Metrics
from stream.models import ModelHolder
from tests.sessions import QUICK, checkerboard
from tests.test_fraud import FEATURES, SMALL, history
from trainer import artifacts, durable, manifest
from trainer.artifacts import Draft, check_golden, current_version, load, load_current, publish, verify_in_child
from trainer.fraud import fit_fraud
from trainer.isolation import fit_isolation
from trainer.recommender import fit_recommender, golden_sessions

HASH = "a" * 64
FILES = ("manifest.json", "fraud.txt", "isolation.npz", "recommender.npz", "ranker.txt", "golden.npz")


@pytest.fixture(scope="module")
def draft() -> Draft:
    judged, table = history(2000), checkerboard(sessions=400)
    fitted = fit_fraud(judged, FEATURES, SMALL)
    return Draft(
        schema_hash=HASH,
        fraud=FraudModel(fitted.text, fit_isolation(judged.x, seed=1), FEATURES, fitted.thresholds),
        recommender=fit_recommender(table, QUICK).model,
        training={"rows": 2000, "clicks": table.num_rows},
        metrics={"fraud": fitted.metrics, "recommendations": {"hr": 1, "mrr": None}},
        vectors=judged.x[:20],
        sessions=golden_sessions(table, 20),
    )


@pytest.fixture(scope="module")
def published(draft: Draft, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published") / "models"
    publish(root, draft, created_ms=1)
    return root


@pytest.fixture
def root(published: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(published, tmp_path / "models"))


def reseal(folder: Path) -> None:
    """Write the manifest anew over files that were changed, as a faulty publisher would."""
    old = manifest.decode((folder / "manifest.json").read_bytes(), folder.name)
    files = {
        name: manifest.FileEntry(manifest.digest(data), len(data))
        for name, data in ((name, (folder / name).read_bytes()) for name in old.files)
    }
    (folder / "manifest.json").write_bytes(manifest.encode(msgspec.structs.replace(old, files=files)))


def test_what_was_published_is_what_is_loaded(root: Path, draft: Draft) -> None:
    artifact = load_current(root, HASH)
    assert artifact.version == current_version(root) == "000001"
    assert artifact.fraud is not None and draft.fraud is not None and draft.vectors is not None
    assert artifact.fraud.version == "000001" and artifact.fraud.thresholds == draft.fraud.thresholds
    for found, expected in zip(
        artifact.fraud.score_many(draft.vectors), draft.fraud.score_many(draft.vectors), strict=True
    ):
        assert np.array_equal(found, expected)
    assert artifact.manifest.training == {"rows": 2000, "clicks": draft.training["clicks"]}
    assert [feature.name for feature in artifact.manifest.features] == [feature.name for feature in FEATURES]
    check_golden(artifact)


def test_nothing_published_yet_is_missing_and_not_an_accident(tmp_path: Path) -> None:
    assert current_version(tmp_path / "nowhere") is None
    with pytest.raises(ArtifactMissing, match="headrace train"):
        load_current(tmp_path / "nowhere", HASH)


def test_any_changed_byte_of_the_manifest_is_found(root: Path) -> None:
    whole = (root / "000001" / "manifest.json").read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        with pytest.raises(ArtifactCorrupt, match="000001"):
            manifest.decode(bytes(damaged), "000001")
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        with pytest.raises(ArtifactCorrupt):
            manifest.decode(whole[:length], "000001")


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_in_any_file_is_found_before_it_is_parsed(root: Path, name: str) -> None:
    path = root / "000001" / name
    whole = path.read_bytes()
    for place in {0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 1}:
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(ArtifactCorrupt, match=r"000001.*headrace train"):
            load(root, "000001", HASH)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_found(root: Path, name: str) -> None:
    path = root / "000001" / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ArtifactCorrupt):
        load(root, "000001", HASH)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(root: Path, name: str) -> None:
    (root / "000001" / name).unlink()
    with pytest.raises(ArtifactMissing, match=name):
        load(root, "000001", HASH)


def test_another_schema_is_refused(root: Path) -> None:
    with pytest.raises(ArtifactMismatch, match=r"aaaaaaaaaaaa.*bbbbbbbbbbbb"):
        load(root, "000001", "b" * 64)


@pytest.mark.parametrize("text", [b"", b"000001 000002\n", b"../000001\n", b"latest", b"\xff\xfe\n"])
def test_a_pointer_that_holds_no_version_is_corrupt(root: Path, text: bytes) -> None:
    (root / "CURRENT").write_bytes(text)
    with pytest.raises(ArtifactCorrupt, match="CURRENT"):
        load_current(root, HASH)


def test_a_pointer_to_nowhere_is_missing(root: Path) -> None:
    (root / "CURRENT").write_bytes(b"000007\n")
    with pytest.raises(ArtifactMissing, match="000007"):
        load_current(root, HASH)


@pytest.mark.parametrize("version", ["", ".", "..", "../models/000001", "1"])
def test_only_versions_are_looked_up(root: Path, version: str) -> None:
    with pytest.raises(ArtifactMissing):
        load(root, version, HASH)


def test_a_manifest_of_another_version_is_corrupt(root: Path) -> None:
    (root / "000001").rename(root / "000002")
    with pytest.raises(ArtifactCorrupt, match="that of version '000001'"):
        load(root, "000002", HASH)


def test_pickled_objects_are_refused_even_under_a_valid_hash(root: Path) -> None:
    np.savez(root / "000001" / "isolation.npz", roots=np.array([{}], dtype=object))
    reseal(root / "000001")
    with pytest.raises(ArtifactCorrupt, match="allow_pickle"):
        load(root, "000001", HASH)


def test_mapped_arrays_stay_in_their_file_and_answer_the_same(root: Path) -> None:
    own, shared = load(root, "000001", HASH), load(root, "000001", HASH, shared=True)
    check_golden(shared)
    model, other = shared.recommender, own.recommender
    assert model is not None and other is not None
    for name, array in model.to_arrays().items():
        assert np.array_equal(array, other.to_arrays()[name]) and array.dtype == other.to_arrays()[name].dtype
        assert array.ctypes.data % 64 == 0 and not array.flags.owndata
    place = np.flatnonzero(model.popularity)[0]
    model.popularity[place] = 0.5  # nothing that a process writes reaches the file, or another process
    assert load(root, "000001", HASH, shared=True).recommender.popularity[place] != 0.5  # type: ignore[union-attr]


@pytest.mark.parametrize("made", ["by NumPy, unaligned", "with objects", "compressed", "empty", "cut off"])
def test_a_mapped_file_is_checked_as_any_other(root: Path, made: str) -> None:
    path = root / "000001" / "recommender.npz"
    arrays = durable.npz_arrays(path.read_bytes())
    if made == "empty":
        path.write_bytes(b"")
    elif made == "cut off":
        path.write_bytes(path.read_bytes()[:5000])
    elif made == "compressed":
        np.savez_compressed(path, allow_pickle=False, **arrays)
    else:
        np.savez(path, allow_pickle=True, **(arrays | ({"rarity": np.array([{}])} if made == "with objects" else {})))
    with pytest.raises(ArtifactCorrupt, match="not what was published"):
        load(root, "000001", HASH, shared=True)
    reseal(root / "000001")
    if made.startswith("by NumPy"):
        check_golden(load(root, "000001", HASH, shared=True))
        return
    with pytest.raises(ArtifactCorrupt, match="objects|is compressed|zip file|No data left"):
        load(root, "000001", HASH, shared=True)


def test_models_that_answer_otherwise_than_when_published_are_refused(root: Path, draft: Draft) -> None:
    path = root / "000001" / "golden.npz"
    for name in ("scores", "anomalies", "item_scores"):
        answers = durable.npz_arrays(path.read_bytes())
        whole = answers[name].copy()
        answers[name] = whole + np.float32(0.01)
        path.write_bytes(durable.npz_bytes(answers))
        reseal(root / "000001")
        with pytest.raises(ArtifactCorrupt, match="differ"):
            check_golden(load(root, "000001", HASH))
        path.write_bytes(durable.npz_bytes(answers | {name: whole}))
    path.write_bytes(durable.npz_bytes({}))
    reseal(root / "000001")
    with pytest.raises(ArtifactCorrupt, match="does not fit"):
        check_golden(load(root, "000001", HASH))


def test_a_version_of_an_earlier_format_is_refused_with_the_way_out(root: Path) -> None:
    path = root / "000001" / "manifest.json"
    old = manifest.decode(path.read_bytes(), "000001")
    path.write_bytes(manifest.encode(msgspec.structs.replace(old, format=manifest.FORMAT - 1)))
    with pytest.raises(ArtifactCorrupt, match=r"format 1; this program reads 2.*headrace train"):
        load(root, "000001", HASH)


def test_a_recommender_without_its_ranker_is_refused(root: Path) -> None:
    path = root / "000001" / "manifest.json"
    whole = manifest.decode(path.read_bytes(), "000001")
    files = {name: entry for name, entry in whole.files.items() if name != "ranker.txt"}
    path.write_bytes(manifest.encode(msgspec.structs.replace(whole, files=files)))
    with pytest.raises(ArtifactCorrupt, match="lists files"):
        load(root, "000001", HASH)


def test_a_child_process_verifies_and_says_what_is_wrong(root: Path) -> None:
    verify_in_child(root, "000001", HASH)
    with pytest.raises(ArtifactMismatch, match="schema"):
        verify_in_child(root, "000001", "b" * 64)
    with pytest.raises(ArtifactMissing, match="000009"):
        verify_in_child(root, "000009", HASH)


def test_a_model_text_that_breaks_its_parser_breaks_only_the_child(root: Path) -> None:
    path = root / "000001" / "fraud.txt"
    path.write_text(path.read_text().replace("split_feature=", "split_feature=99999 ", 1))
    reseal(root / "000001")
    with pytest.raises(ArtifactCorrupt):
        verify_in_child(root, "000001", HASH)


def test_a_child_that_takes_too_long_is_given_up(root: Path) -> None:
    with pytest.raises(ArtifactCorrupt, match=r"within 0.001 s"):
        verify_in_child(root, "000001", HASH, timeout_s=0.001)


def test_a_verification_that_nobody_waits_for_ends_with_its_block(root: Path) -> None:
    with pytest.raises(KeyError), artifacts.Verification(root, "000001", HASH) as verification:
        raise KeyError
    assert verification.ended


def test_versions_rise_and_old_ones_go_but_never_the_current(root: Path, draft: Draft) -> None:
    made = [publish(root, draft, created_ms=n, keep=2) for n in range(3)]
    assert made == ["000002", "000003", "000004"]
    assert artifacts.versions(root) == ["000003", "000004"] and current_version(root) == "000004"
    shutil.rmtree(root / "000004")
    assert publish(root, draft, created_ms=9, keep=2) == "000005"


def test_a_version_that_an_experiment_names_stays_however_old_it_is(root: Path, draft: Draft) -> None:
    for n in range(4):
        publish(root, draft, created_ms=n, keep=2, pinned=("000002",))
    assert artifacts.versions(root) == ["000002", "000004", "000005"]


def test_a_publisher_that_dies_leaves_the_old_version_in_place(
    root: Path, draft: Draft, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    for step in ("write", "sync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(durable, step, die)
            with pytest.raises(KeyboardInterrupt):
                publish(root, draft, created_ms=2)
        check_golden(load_current(root, HASH))
        assert current_version(root) == "000001"
    (root / ".publishing").mkdir()
    (root / ".publishing" / "left-over").write_text("of a killed publisher")
    version = publish(root, draft, created_ms=3)
    assert current_version(root) == version and not (root / version / "left-over").exists()


def test_publishers_at_the_same_time_get_a_version_each(root: Path, draft: Draft) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda n: publish(root, draft, created_ms=n, keep=9), range(4)))
    assert sorted(made) == ["000002", "000003", "000004", "000005"]
    assert current_version(root) == "000005"


def test_a_reader_beside_a_publisher_always_finds_a_whole_version(root: Path, draft: Draft) -> None:
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [publish(root, draft, created_ms=n, keep=9) for n in range(4)])
        while not writing.done():
            load_current(root, HASH)
        assert len(writing.result()) == 4


def test_an_artifact_may_hold_only_one_kind_of_model(tmp_path: Path, draft: Draft) -> None:
    publish(tmp_path / "a", replace(draft, recommender=None, sessions=None), created_ms=1)
    publish(tmp_path / "b", replace(draft, fraud=None, vectors=None), created_ms=1)
    fraud, clicks = load_current(tmp_path / "a", HASH), load_current(tmp_path / "b", HASH)
    assert fraud.recommender is None and fraud.fraud is not None
    assert clicks.fraud is None and clicks.recommender is not None and clicks.manifest.thresholds is None
    verify_in_child(tmp_path / "a", "000001", HASH)
    verify_in_child(tmp_path / "b", "000001", HASH)
    with pytest.raises(ValueError, match="nothing to publish"):
        publish(tmp_path / "c", Draft(HASH), created_ms=1)
    with pytest.raises(ValueError, match="golden"):
        publish(tmp_path / "c", replace(draft, vectors=None), created_ms=1)


def test_a_directory_that_cannot_be_written_is_an_error_with_its_name(tmp_path: Path, draft: Draft) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(ArtifactError, match="cannot publish"):
        publish(tmp_path / "file", draft, created_ms=1)


def test_a_worker_that_may_decide_by_rules_begins_without_models_and_takes_up_the_first_version(
    draft: Draft, tmp_path: Path
) -> None:
    root, names, warmed = tmp_path / "models", [feature.name for feature in FEATURES], list[str]()

    def begin(*, required: bool) -> ModelHolder:
        return ModelHolder(root, HASH, names, Metrics(), lambda: warmed.append("code"), required=required)

    with pytest.raises(ArtifactMissing, match="no model is published.*headrace train"):
        begin(required=True)
    holder = begin(required=False)
    assert holder.current.fraud is None and holder.current.version == "none" and warmed == ["code"]
    version = publish(root, draft, created_ms=1)
    asyncio.run(holder._swap(version))
    assert holder.current.fraud is not None and holder.current.version == version


def test_a_new_version_may_add_a_recommender_but_take_nothing_away(draft: Draft, tmp_path: Path) -> None:
    root, names = tmp_path / "models", [feature.name for feature in FEATURES]
    fraud, clicks = replace(draft, recommender=None), replace(draft, fraud=None)

    def swapped(*drafts: Draft) -> tuple[bool, bool]:
        """Which models are in use after these versions; the first one is there at the start."""
        holder = None
        for number, one in enumerate(drafts):
            version = publish(root, one, created_ms=number)
            if holder is None:
                holder = ModelHolder(root, HASH, names, Metrics(), lambda: None)
                continue
            with contextlib.suppress(ArtifactMissing):
                asyncio.run(holder._swap(version))
        assert holder is not None
        return holder.current.fraud is not None, holder.current.recommender is not None

    assert swapped(fraud, draft) == swapped(fraud, draft, fraud) == swapped(draft, clicks) == (True, True)
    assert swapped(clicks, draft) == (False, True)  # a worker that was started on clicks reads no transactions
