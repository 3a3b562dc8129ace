"""Where a source lies and what identifies it: paths, packages, hub names, split names, digests."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import pytest
from kit.rows_on_disk import make_folder

from raydistill.config.data import Data
from raydistill.data.location import document_labels, locate, source_identity
from raydistill.data.paths import split_of
from raydistill.errors import ConfigError, did_you_mean
from raydistill.storage.paths import resolve_path

CSV = b"text,label\na,1\nb,0\n"


def test_classes_named_like_splits_stay_classes() -> None:
    assert document_labels(["test/1", "quiz/2"]) == [("train", "test"), ("train", "quiz")]
    assert document_labels(["test/a/1", "quiz/2"]) == [("train", "test"), ("train", "quiz")]
    assert document_labels(["dev/a/1", "test/a/2"]) == [("validation", "a"), ("test", "a")]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.csv", "train"),
        ("data/train-00000-of-00002.parquet", "train"),
        ("bbc_Training_v2.jsonl", "train"),
        *((f"{word}.csv", "validation") for word in ("validation", "valid", "val", "dev")),
        ("dev/part-1.parquet", "validation"),
        ("movies-test.json", "test"),
        ("contest.csv", None),
        ("trained.csv", None),
        ("data.test-like.csv", None),
    ],
)
def test_split_of(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_a_file_name_with_two_splits_is_refused() -> None:
    with pytest.raises(ConfigError, match="test and train"):
        split_of("train_test.csv")


def test_a_missing_path_names_what_is_near(tmp_path: Path) -> None:
    (tmp_path / "reviews").mkdir()
    for wrong in ("reveiws", "reveiws/deep/train.csv"):
        with pytest.raises(ConfigError, match=r"does not exist.*'reviews'"):
            resolve_path(str(tmp_path / wrong))
    with pytest.raises(ConfigError, match="does not exist"):
        resolve_path("no/such/train.csv")
    with pytest.raises(ConfigError, match="does not exist"):
        resolve_path("/" + "x" * 5000)


def test_a_pipe_is_refused_as_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.csv")
    for name in (str(tmp_path / "rows.csv"), "/dev/null", "-"):
        with pytest.raises(ConfigError, match=r"is a pipe or a device, and data is read more than once\."):
            locate(Data(path=name))


def test_resolve_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    assert {resolve_path(name) for name in ("here", "~/here", str(tmp_path / "here"))} == {tmp_path / "here"}
    assert [resolve_path(name) for name in ("imdb", "stanfordnlp/imdb", "s3://bucket/x.parquet")] == [None] * 3


def test_pkg_paths_are_found_without_importing_and_stay_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path, {"a_package/__init__.py": "raise RuntimeError", "a_package/data/x.csv": CSV, "secret": "s"})
    (tmp_path / "a_package" / "link").symlink_to(tmp_path / "secret")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve_path("pkg://a_package/data") == tmp_path / "a_package" / "data"
    assert "a_package" not in sys.modules
    for wrong in ("../secret", "data/../../secret", "link", f"/../{tmp_path}/secret"):
        with pytest.raises(ConfigError, match="leaves the package"):
            resolve_path(f"pkg://a_package/{wrong}")
    with pytest.raises(ConfigError, match="'data'"):
        resolve_path("pkg://a_package/dato")
    with pytest.raises(ConfigError, match="'pyarrow'"):
        resolve_path("pkg://pyarow/data")
    with pytest.raises(ConfigError, match="no package"):
        resolve_path("pkg://__main__/data")


def test_identity_follows_content_and_not_place(tmp_path: Path) -> None:
    one = make_folder(tmp_path / "one", {"a/1": "x", "b/1": "y"})
    two = shutil.copytree(one, tmp_path / "elsewhere" / "two")
    before = source_identity(Data(path=str(one)))
    assert source_identity(Data(path=str(two), format="text_folder", max_length=5)) == before
    (two / "b/1").write_text("Y")
    assert source_identity(Data(path=str(two))) != before
    (one / "b/1").rename(one / "b/2")
    assert source_identity(Data(path=str(one))) != before
    (tmp_path / "p.csv").write_bytes(CSV)
    (tmp_path / "q.csv").write_bytes(CSV)
    assert source_identity(Data(path=str(tmp_path / "p.csv"))) == source_identity(Data(path=str(tmp_path / "q.csv")))


def test_identity_of_2225_files_takes_less_than_a_second(tmp_path: Path) -> None:
    make_folder(tmp_path, {f"{i % 5}/{i}.txt": "word " * 400 for i in range(2225)})
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        source_identity(Data(path=str(tmp_path)))
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1


def test_a_hub_name_that_cannot_be_reached_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reviews").mkdir()
    with pytest.raises(ConfigError, match=r"hub is not asked \(HF_HUB_OFFLINE is set\).*'reviews'"):
        source_identity(Data(path="reveiws"))
    with pytest.raises(ConfigError, match="needs a local path"):
        source_identity(Data(path="reveiws", format="csv"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    make_folder(tmp_path, {"datasets--owner--name/refs/main": commit})
    expected = {"kind": "hub", "name": "owner/name", "commit": commit}
    assert source_identity(Data(path="owner/name")) == expected
    assert source_identity(Data(path="owner/name", format="hub", revision=commit)) == expected


def test_up_to_three_names_are_offered() -> None:
    assert did_you_mean("Trian", ["train", "test"]) == "Did you mean 'train'?"
    assert did_you_mean("text", ["text_a", "text_b", "texts", "label"]).count(" or ") == 2
    assert did_you_mean("zzz", ["b", "a"]) == "There are: a, b."
