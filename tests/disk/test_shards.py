"""Names and links that somebody else chose: they lead to files of the folder, or to the cache that it is part of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from monoquant.disk.shards import members_of
from monoquant.errors import FileError

HASH = "0123456789abcdef" * 4


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A repository as the cache of HuggingFace keeps it: names are links to blobs."""
    root = tmp_path / "models--owner--name"
    (root / "blobs").mkdir(parents=True)
    revision = root / "snapshots" / "abcdef"
    (revision / "inner").mkdir(parents=True)
    for blob in (HASH, HASH[:40], "words", HASH[:50]):
        (root / "blobs" / blob).write_text("content")
    (root / "secret").write_text("content")
    return root


def link(folder: Path, target: Path) -> str:
    name = f"link-{len(list(folder.iterdir()))}"
    (folder / name).symlink_to(os.path.relpath(target, folder))
    return name


def test_the_cache_of_huggingface(cache: Path) -> None:
    """Links to blobs are followed, from the snapshot and from folders in it, whatever name it is reached by."""
    revision = cache / "snapshots" / "abcdef"
    for folder in (revision, revision / "inner"):
        for blob in (HASH, HASH[:40]):
            name = link(folder, cache / "blobs" / blob)
            assert members_of(folder, [name]) == [folder / name]
    alias = cache.parent / "alias"
    alias.symlink_to(revision)
    name = link(revision, cache / "blobs" / HASH)
    assert members_of(alias, [name]) == [alias / name]


@pytest.mark.parametrize("target", ["blobs/words", f"blobs/{HASH[:50]}", "secret", "../outside", f"blobs/deep/{HASH}"])
def test_links_out_of_the_cache(cache: Path, target: str) -> None:
    """Only what is named as a hash, right among the blobs."""
    revision, file = cache / "snapshots" / "abcdef", cache / target
    file.parent.mkdir(exist_ok=True)
    file.write_text("content")
    name = link(revision, file)
    with pytest.raises(FileError, match=f"{name}: leads out of its folder, to {file.resolve()}; put a copy"):
        members_of(revision, [name])


def test_blobs_of_another_repository(cache: Path, tmp_path: Path) -> None:
    """And folders that are called as those of a cache, but are none."""
    other = tmp_path / "models--other--name" / "blobs"
    other.mkdir(parents=True)
    (other / HASH).write_text("content")
    name = link(cache / "snapshots" / "abcdef", other / HASH)
    with pytest.raises(FileError, match="leads out of its folder"):
        members_of(cache / "snapshots" / "abcdef", [name])
    plain = cache / "plain" / "abcdef"
    plain.mkdir(parents=True)
    name = link(plain, cache / "blobs" / HASH)
    with pytest.raises(FileError, match="leads out of its folder"):
        members_of(plain, [name])


def test_links_within_a_folder(tmp_path: Path) -> None:
    """Are followed, deeper ones included, and so is a link that is the folder itself."""
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "deep" / "file").write_text("content")
    name = link(tmp_path / "real", tmp_path / "real" / "deep" / "file")
    (tmp_path / "alias").symlink_to("real")
    for folder in (tmp_path / "real", tmp_path / "alias"):
        assert members_of(folder, [name]) == [folder / name]


def test_links_to_neighbours_of_the_folder(tmp_path: Path) -> None:
    """A name that begins as the folder's does is not in it."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model-secret").write_text("content")
    name = link(tmp_path / "model", tmp_path / "model-secret")
    with pytest.raises(FileError, match="leads out of its folder"):
        members_of(tmp_path / "model", [name])


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\\b", "c:a", "a\0", "a\n", "\ud800"])
def test_names_that_are_no_files(tmp_path: Path, name: str) -> None:
    """On any system."""
    with pytest.raises(FileError, match="files must lie in it, and these do not: "):
        members_of(tmp_path, ["fine", name])


def test_all_files_that_are_missing_are_named(tmp_path: Path) -> None:
    """Links to nothing included."""
    (tmp_path / "b").write_text("content")
    (tmp_path / "c").symlink_to("nothing")
    with pytest.raises(FileError, match="3 of 4 files are missing: a, c, d; get them"):
        members_of(tmp_path, "dcba")
