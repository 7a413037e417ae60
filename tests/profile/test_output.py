import os
import subprocess
import sys
from pathlib import Path

import pytest

from terra_cx.errors import UsageError
from terra_cx.profile.output import NAMES, claim


def test_a_claim_makes_the_directory_and_leaves_no_file(tmp_path):
    made = claim(tmp_path / "a" / "b", "co")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    made.write(dict.fromkeys(NAMES, "text"))
    assert {file.name for file in (tmp_path / "a" / "b").iterdir()} == set(NAMES)


def test_a_directory_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError, match="not a directory; name another"):
        claim(tmp_path / "out", "co")


def test_a_file_where_a_file_has_to_go_is_kept_from_being_a_directory(tmp_path):
    (tmp_path / "profile.html").mkdir()
    with pytest.raises(UsageError, match=r"profile\.html: not a regular file"):
        claim(tmp_path, "co")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc, in which nothing can be made")
def test_a_place_that_cannot_be_written_is_refused_in_one_line():
    with pytest.raises(UsageError, match="name another directory") as caught:
        claim(Path("/proc/terra"), "co")
    assert "\n" not in str(caught.value)


def test_mode_eager_has_no_profile(tmp_path):
    with pytest.raises(UsageError, match="mode eager"):
        claim(tmp_path, "eager")
    assert not (tmp_path / "profile.html").exists()


def launched(words, cwd, **env):
    return subprocess.run(
        [sys.executable, "-m", "terra_cx", "run", *words],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_bad_directory_is_told_before_the_program_starts(tmp_path):
    (tmp_path / "out").write_text("")
    done = launched(["--profile", "out", "-c", "print('started')"], tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == "terra-run: cannot write a profile into out: not a directory; name another\n".replace(
            "terra-run", "terra-cx run"
        )
    )


def test_a_disk_that_is_full_at_the_end_does_no_harm(tmp_path):
    """A limit on the size of files: what a full disk is to whoever writes."""
    program = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))\n"
        "print('the program is well')\n"
    )
    done = launched(["--profile", "out", "-c", program], tmp_path)
    assert (done.returncode, done.stdout) == (0, "the program is well\n")
    assert "could not write its profile" in done.stderr
    assert "the program is not affected" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_a_program_without_tensorflow_has_a_profile_that_says_so(tmp_path):
    done = launched(["-q", "--profile", "out", "-c", "pass"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no training step was found" in (tmp_path / "out" / "profile.html").read_text()
    assert {file.name for file in (tmp_path / "out").iterdir()} == set(NAMES)


def test_mode_eager_is_refused_a_profile_only_where_both_are_asked_for(tmp_path):
    done = launched(["--mode", "eager", "--profile", "out", "-c", "print(1)"], tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    done = launched(["--mode", "eager", "-c", "print(1)"], tmp_path, TERRA_PROFILE="out")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
    assert not (tmp_path / "out").exists()


def test_turned_off_means_off(tmp_path):
    done = launched(["--profile", "out", "-c", "print(1)"], tmp_path, TERRA_DISABLE="1")
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert not (tmp_path / "out").exists()
