"""The files of a cache: whole or not used, bounded, and never in the way."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from terra_cx.cache.store import SUFFIX, VERSION, Store, Unreadable, describe, entries

NAME = "a" * 40


class Told(list):
    """Lines for the user."""

    def __call__(self, line):
        self.append(line)


def opened(folder, limit=1 << 20, *, readonly=False):
    told = Told()
    return Store(folder, limit, readonly, told), told


def file_of(folder, name=NAME):
    return Path(folder) / (name + SUFFIX)


def test_what_is_saved_is_there_for_the_next(tmp_path):
    store, told = opened(tmp_path / "a" / "b")
    assert not store.has(NAME)
    assert store.save(NAME, b"content")
    other, _ = opened(tmp_path / "a" / "b")
    assert other.has(NAME)
    assert other.load(NAME) == b"content"
    assert told == []
    assert (tmp_path / "a" / "b").stat().st_mode & 0o077 == 0, "others could write what is trusted"


def cut(data):
    return data[:-1]


def changed(data):
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


def foreign(data):
    return b"\x89PNG and so on"


def future(data):
    version = str(VERSION).encode()
    return data.replace(b"cache " + version + b"\n", b"cache " + version + b"1\n", 1)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (cut, "damaged"),
        (changed, "damaged"),
        (lambda data: data[:20], "damaged"),
        (foreign, "no file of terra-cx's"),
        (lambda data: b"", "empty"),
        (future, "another version"),
    ],
)
def test_what_is_wrong_is_not_used_and_told_once(tmp_path, damage, why):
    opened(tmp_path)[0].save(NAME, b"content" * 100)
    path = file_of(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    store, told = opened(tmp_path)
    assert store.load(NAME) is None
    assert not store.has(NAME), "it would be looked at again"
    store.unusable("other", "of no use")
    assert store.problems == 2
    assert len(told) == 1
    assert why in told[0]
    with pytest.raises(Unreadable):
        describe(path)
    assert store.save(NAME, b"new")
    assert opened(tmp_path)[0].load(NAME) == b"new"


def test_used_longest_ago_goes_first(tmp_path):
    store, told = opened(tmp_path, limit=4000)
    noise = [os.urandom(1200) for _ in range(5)]
    for number in range(3):
        assert store.save(str(number), noise[number])
        os.utime(file_of(tmp_path, str(number)), (number, number))
    assert store.load("0") == noise[0]  # used now
    assert store.save("3", noise[3])
    assert {entry.path.stem for entry in entries(tmp_path)} == {"0", "2", "3"}
    assert not store.save("4", os.urandom(5000))
    assert "cache-limit" in told[0]
    assert {entry.path.stem for entry in entries(tmp_path)} == {"0", "2", "3"}


def test_reads_only_when_asked_to(tmp_path):
    opened(tmp_path)[0].save(NAME, b"content")
    os.utime(file_of(tmp_path), (5, 5))
    before = sorted(os.listdir(tmp_path))
    store, told = opened(tmp_path, readonly=True)
    assert store.load(NAME) == b"content"
    assert not store.save("other", b"more")
    assert sorted(os.listdir(tmp_path)) == before
    assert file_of(tmp_path).stat().st_mtime == 5
    assert told == []
    missing, told = opened(tmp_path / "nowhere", readonly=True)
    assert not missing.has(NAME)
    assert len(told) == 1
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_that_cannot_be_made_is_told_once(tmp_path):
    (tmp_path / "file").touch()
    store, told = opened(tmp_path / "file" / "cache")
    assert store.readonly
    assert not store.save(NAME, b"content")
    assert store.load(NAME) is None
    assert len(told) == 1
    assert "the run goes on" in told[0]


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    opened(tmp_path)[0].save(NAME, b"old")
    store, told = opened(tmp_path)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert not store.save(NAME, b"new")
    assert not store.save(NAME, b"new")
    monkeypatch.undo()
    assert len(told) == 1
    assert "No space left" in told[0]
    assert os.listdir(tmp_path) == [NAME + SUFFIX]
    assert opened(tmp_path)[0].load(NAME) == b"old"


def test_drafts_of_writers_that_died_are_removed_in_time(tmp_path):
    store, _ = opened(tmp_path)
    young, old = tmp_path / f".{NAME}.1.ab.tmp", tmp_path / f".{NAME}.2.ab.tmp"
    young.write_bytes(b"half")
    old.write_bytes(b"half")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    store.save(NAME, b"content")
    assert young.exists()
    assert not old.exists()


WRITER = """
import os, sys
from terra_cx.cache.store import Store
store = Store(__import__("pathlib").Path(sys.argv[1]), 1 << 30, False, print)
print("ready", flush=True)
for number in range(10**9):
    store.save("b" * 40, bytes([number % 251]) * 3_000_000 + os.urandom(200_000))
"""


def test_killed_while_it_writes(tmp_path):
    for _ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        assert writer.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + 20
        while not list(tmp_path.glob(".b*.tmp")):
            assert time.monotonic() < deadline
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        for entry in entries(tmp_path):
            store, told = opened(tmp_path)
            content = store.load(entry.path.stem)
            assert content is not None, told
            assert len(content) == 3_200_000
    store, told = opened(tmp_path)
    assert store.save("b" * 40, b"content")
    assert store.load("b" * 40) == b"content"
    assert told == []


def _busy(folder, number, results):
    store, told = opened(folder, limit=30_000)
    good = True
    for turn in range(60):
        store.save(f"{turn % 7}", json.dumps([number, turn] * 500).encode() + os.urandom(3000))
        content = store.load(f"{(turn + number) % 7}")
        good = good and (content is None or content.startswith(b"["))
    results.put((good, list(told)))


def test_several_processes_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    others = [context.Process(target=_busy, args=(tmp_path, number, results)) for number in range(3)]
    for other in others:
        other.start()
    outcomes = [results.get(timeout=60) for _ in others]
    for other in others:
        other.join()
    assert outcomes == [(True, [])] * 3
    assert 0 < sum(entry.size for entry in entries(tmp_path)) <= 30_000
