"""Files and folders appear whole or not at all; a digest is computed once."""

import errno
import os
import subprocess
import sys
import threading

import pytest

from rlhf_data import files


def test_a_file_that_could_not_be_finished_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "table"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), files.whole_file(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_not_there_until_it_is_whole(tmp_path):
    path = tmp_path / "folder"
    with files.whole_folder(path) as temporary:
        (temporary / "a").touch()
        assert not path.exists()
    assert [p.name for p in path.iterdir()] == ["a"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("when", ["before the end", "at the very end"])
def test_where_two_make_one_folder_the_faster_wins_and_the_slower_goes_on(when, tmp_path, monkeypatch):
    path = tmp_path / "folder"

    def faster():
        path.mkdir()
        (path / "faster").touch()

    replace = os.replace
    if when == "at the very end":
        monkeypatch.setattr(os, "replace", lambda a, b: (faster(), replace(a, b)))
    with files.whole_folder(path) as temporary:
        (temporary / "slower").touch()
        if when == "before the end":
            faster()
    assert [p.name for p in path.iterdir()] == ["faster"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_take_its_place_is_an_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"), files.whole_folder(tmp_path / "folder"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_swept_away_and_a_living_ones_is_not(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    (tmp_path / f".x.{files._HERE}-{int(dead.stdout)}.0badcafe.tmp").mkdir()
    living = tmp_path / f".x.{files._HERE}-{os.getpid()}.0badcafe.tmp"
    elsewhere = tmp_path / f".x.another-{int(dead.stdout)}.0badcafe.tmp"
    living.mkdir()
    elsewhere.mkdir()
    (tmp_path / ".mine.tmp").touch()
    with files.whole_folder(tmp_path / "folder"):
        pass
    assert {p.name for p in tmp_path.iterdir()} == {"folder", living.name, elsewhere.name, ".mine.tmp"}


def test_a_digest_is_of_the_bytes_and_is_computed_again_only_if_the_file_changed(tmp_path, monkeypatch):
    path, remembered = tmp_path / "raw", tmp_path / "deep" / "digests.json"
    computed = []
    digest = files.digest
    monkeypatch.setattr(files, "digest", lambda p: (computed.append(p), digest(p))[1])
    path.write_bytes(b"abc")
    first = files.digests([path], remembered)
    assert files.digests([path], remembered) == first == [digest(path)]
    assert computed == [path]
    os.utime(path, (1, 1))  # touched: looked at again, and the same
    assert files.digests([path], remembered) == first
    path.write_bytes(b"abd")
    assert files.digests([path], remembered) != first
    assert computed == [path] * 3


@pytest.mark.parametrize("locks", [True, False])
def test_a_folder_is_held_by_one_at_a_time_where_its_file_system_locks_folders(locks, tmp_path, monkeypatch):
    if not locks:

        def refused(*_):
            raise OSError(errno.EBADF, "as NFS says")

        monkeypatch.setattr("fcntl.flock", refused)
    came, there = [], threading.Event()

    def second():
        there.set()
        with files.alone(tmp_path / "new"):
            came.append("second")

    with files.alone(tmp_path / "new"):
        other = threading.Thread(target=second)
        other.start()
        there.wait(10)
        other.join(0.2 if locks else 10)
        came.append("first")
    other.join(10)
    assert came == (["first", "second"] if locks else ["second", "first"])
