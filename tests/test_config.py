"""Where settings come from, which source wins, and what is said about a wrong one."""

import dataclasses
from pathlib import Path

import pytest

from terra_cx.config import SETTINGS, Options, load
from terra_cx.errors import ConfigError, TerraError, UsageError


def project(folder, text):
    (folder / "pyproject.toml").write_text(text)
    return folder


def test_every_field_is_a_setting():
    assert [field.name for field in dataclasses.fields(Options)] == list(SETTINGS)


def test_defaults(tmp_path):
    assert load(environ={}, directory=tmp_path) == Options()


def test_readers_accept_their_defaults():
    for name, setting in SETTINGS.items():
        default = getattr(Options(), name)
        if default is not None:
            assert setting.read(str(default), "here") == default
            assert setting.read(default, "here") == default


def test_order_of_sources(tmp_path):
    project(tmp_path, "[tool.terra-cx]\nrun-ahead = 5\nwarmup = 5\nmax-nodes = 5\n")
    environ = {"TERRA_WARMUP": "6", "TERRA_MAX_NODES": "6"}
    options = load({"max_nodes": "7"}, environ=environ, directory=tmp_path)
    assert (options.run_ahead, options.warmup, options.max_nodes, options.watchdog) == (5, 6, 7, 60.0)


def test_all_from_the_environment(tmp_path):
    environ = {
        "TERRA_MODE": "lazy",
        "TERRA_QUIET": "yes",
        "TERRA_REPORT": "r.json",
        "TERRA_RUN_AHEAD": "1",
        "TERRA_WARMUP": "2",
        "TERRA_WATCHDOG": "0.5",
        "TERRA_SYNC_ERRORS": "ON",
        "TERRA_DISABLE": "0",
        "TERRA_MAX_NODES": "10",
        "TERRA_CACHE": "kept",
        "TERRA_CACHE_READONLY": "on",
        "TERRA_CACHE_LIMIT": "7",
        "TERRA_TRACEBACK": "full",  # no setting, but not unknown either
        "OTHER": "x",
    }
    assert load(environ=environ, directory=tmp_path) == Options(
        mode="lazy",
        quiet=True,
        report=Path("r.json"),
        run_ahead=1,
        warmup=2,
        watchdog=0.5,
        sync_errors=True,
        max_nodes=10,
        cache=Path("kept"),
        cache_readonly=True,
        cache_limit=7,
    )


def test_empty_variable_is_not_set(tmp_path):
    assert load(environ={"TERRA_MODE": "", "TERRA_DISABLE": ""}, directory=tmp_path) == Options()


def test_pyproject(tmp_path):
    project(
        tmp_path, '[tool.terra-cx]\nmode = "trace"\nsync_errors = true\nwatchdog = 3\nreport = "out/r.json"\n'
    )
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    project(below, "[project]\nname = 'unrelated'\n")
    options = load(environ={}, directory=below)
    assert options == Options(mode="trace", sync_errors=True, watchdog=3.0, report=tmp_path / "out/r.json")


def test_unrelated_pyproject_need_not_be_valid(tmp_path):
    assert load(environ={}, directory=project(tmp_path, "not toml [")) == Options()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run-ahed = 1", "unknown key 'run-ahed' in [tool.terra-cx] of {}; did you mean run-ahead?"),
        (
            "run-ahead = true",
            "run-ahead in [tool.terra-cx] of {} must be a whole number of at least 1, not True",
        ),
        ("quiet = 1", "quiet in [tool.terra-cx] of {} must be true or false, not 1"),
        ("watchdog = nan", "watchdog in [tool.terra-cx] of {} must be a number of seconds above 0, not nan"),
        ("mode = 1", "mode in [tool.terra-cx] of {} must be one of eager, trace, lazy, co, not 1"),
        ("report = ''", "report in [tool.terra-cx] of {} must be the name of a file, not ''"),
        ("mode", "{} is not valid TOML: "),
    ],
)
def test_wrong_pyproject(tmp_path, text, message):
    project(tmp_path, f"[tool.terra-cx]\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        load(environ={}, directory=tmp_path)
    assert str(caught.value).startswith(message.format(tmp_path / "pyproject.toml"))
    assert "\n" not in str(caught.value)


def test_pyproject_without_a_table(tmp_path):
    project(tmp_path, "[tool]\nterra-cx = 1\n")
    with pytest.raises(ConfigError, match=r"must be a table: write \[tool.terra-cx\]$"):
        load(environ={}, directory=tmp_path)


def test_unreadable_pyproject(tmp_path):
    (tmp_path / "pyproject.toml").mkdir()
    with pytest.raises(ConfigError, match=r"pyproject.toml cannot be read: Is a directory; TERRA_DISABLE=1"):
        load(environ={}, directory=tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("TERRA_RUN_AHEAD", "0", "TERRA_RUN_AHEAD must be a whole number of at least 1, not '0'"),
        ("TERRA_RUN_AHEAD", "1.5", "TERRA_RUN_AHEAD must be a whole number of at least 1, not '1.5'"),
        ("TERRA_WARMUP", "0", "TERRA_WARMUP must be a whole number of at least 1, not '0'"),
        ("TERRA_WATCHDOG", "soon", "TERRA_WATCHDOG must be a number of seconds above 0, not 'soon'"),
        ("TERRA_WATCHDOG", "-1", "TERRA_WATCHDOG must be a number of seconds above 0, not '-1'"),
        ("TERRA_MODE", "fast", "TERRA_MODE must be one of eager, trace, lazy, co, not 'fast'"),
        ("TERRA_QUIET", "maybe", "TERRA_QUIET must be true or false, not 'maybe'"),
        ("TERRA_DISABLE", "maybe", "TERRA_DISABLE must be true or false, not 'maybe'"),
        ("TERRA_MOD", "co", "unknown environment variable TERRA_MOD; did you mean TERRA_MODE?"),
        ("TERRA_XYZZY", "1", "unknown environment variable TERRA_XYZZY; known: TERRA_MODE, TERRA_QUIET, "),
    ],
)
def test_wrong_variable(tmp_path, name, value, message):
    with pytest.raises(ConfigError) as caught:
        load(environ={name: value}, directory=tmp_path)
    assert str(caught.value).startswith(message)


def test_wrong_command_line(tmp_path):
    with pytest.raises(ConfigError, match=r"^--run-ahead must be a whole number of at least 1, not 'x'$"):
        load({"run_ahead": "x"}, environ={}, directory=tmp_path)
    with pytest.raises(ConfigError, match=r"^unknown setting 'speed'; known: mode, quiet"):
        load({"speed": 1}, environ={}, directory=tmp_path)


def test_disabled_means_that_nothing_else_is_read(tmp_path):
    project(tmp_path, "[tool.terra-cx]\nnonsense = 1\n")
    environ = {"TERRA_DISABLE": "1", "TERRA_NONSENSE": "1"}
    assert load({"mode": "nonsense"}, environ=environ, directory=tmp_path) == Options(disable=True)


def test_disabled_in_pyproject(tmp_path):
    assert load(environ={}, directory=project(tmp_path, "[tool.terra-cx]\ndisable = true\n")).disable


def test_errors_form_one_family():
    assert issubclass(ConfigError, UsageError)
    assert issubclass(UsageError, TerraError)
    assert (TerraError.exit_code, UsageError.exit_code, ConfigError.exit_code) == (1, 2, 2)
