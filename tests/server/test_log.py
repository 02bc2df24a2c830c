"""Log lines: format, escaping, streams, switches that change while it runs, and libraries' lines."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tensorfarm.server.command_line import parse
from tensorfarm.server.log import MESSAGE_LIMIT, LibraryLines, Log, LogSettings, leave_library_lines, settings_of, take_library_lines
from tensorfarm.workers.contract.status import Code, StatusError

LINE = re.compile(r"([IWE])(\d{4}) (\d\d:\d\d:\d\d\.\d{6}) (\d+) ([\w.]+:\d+)\] (.*)\n", re.DOTALL)


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    return tmp_path / "server.log"


@pytest.fixture
def log(log_file: Path) -> Iterator[Log]:
    log = Log(LogSettings(log_file=str(log_file)), escape=True)
    yield log
    log.close()


def test_the_default_format(log: Log, log_file: Path) -> None:
    log.info("hello")
    number = sys._getframe().f_lineno - 1
    found = LINE.fullmatch(log_file.read_text())
    assert found
    assert found[1] == "I"
    assert found[4] == str(os.getpid())
    assert found[5] == f"test_log.py:{number}"
    assert found[6] == '"hello"'


def test_iso8601(log: Log, log_file: Path) -> None:
    log.settings.update({"log_format": "ISO8601"})
    log.error("hello")
    assert re.fullmatch(rf'\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ E {os.getpid()} test_log\.py:\d+\] "hello"\n', log_file.read_text())


def test_times_are_utc() -> None:
    """In a process of its own, whose time zone is far from UTC."""
    script = """
        import time
        from tensorfarm.server.log import Log
        before = time.strftime("%m%d %H:%M", time.gmtime())
        Log().info("x")
        print(before, time.strftime("%m%d %H:%M", time.gmtime()), sep="\\n")
    """
    environ = {**os.environ, "TZ": "Asia/Tokyo"}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, env=environ, check=True)
    line, before, after = done.stdout.splitlines()
    assert line[1:11] in (before, after)


@pytest.mark.parametrize(
    ("message", "written"),
    [
        ('/non\x1b\n"é/\\', r'"/non\u001B\n\"é/\\"'),
        ("\r\t\b\f\0\x7f\x9b\u2028", r'"\r\t\b\f\u0000\u007F\u009B\u2028"'),
        ("日本 😀", '"日本 😀"'),
        ("\udcff", r'"\udcff"'),
    ],
)
def test_messages_are_quoted_and_cannot_forge_lines(log: Log, log_file: Path, message: str, written: str) -> None:
    log.info(message)
    text = log_file.read_text()
    assert text.endswith(f"] {written}\n")
    assert json.loads(text.split("] ", 1)[1]) == message


def test_escaping_can_be_switched_off_by_the_environment(log_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value, written in (("0", "a\nb"), ("1", '"a\\nb"'), ("false", '"a\\nb"')):
        monkeypatch.setenv("TRITON_SERVER_ESCAPE_LOG_MESSAGES", value)
        log = Log(LogSettings(log_file=str(log_file)))
        log.info("a\nb")
        log.close()
        assert log_file.read_text().endswith(f"] {written}\n")


def test_tables_go_out_as_they_are_after_a_line_of_their_own(log: Log, log_file: Path) -> None:
    log.table('+--+\n|"é|\n+--+\n')
    assert re.search(r'^I.* test_log\.py:\d+\] \n\+--\+\n\|"é\|\n\+--\+\n\n$', log_file.read_text())


def test_long_messages_are_cut(log: Log, log_file: Path) -> None:
    log.info("x" * (MESSAGE_LIMIT + 5))
    assert log_file.read_text().endswith('x... (5 more characters)"\n')
    assert len(log_file.read_text()) < MESSAGE_LIMIT + 200


def test_each_level_has_its_switch(log: Log, log_file: Path) -> None:
    def letters() -> str:
        log_file.write_text("")
        log.info("i")
        log.warning("w")
        log.error("e")
        log.verbose(1, "v1")
        log.verbose(2, "v2")
        log.table("t")
        return "".join(line[0] + line[-2] for line in log_file.read_text().splitlines() if "]" in line)

    assert letters() == "IiWwEeI]"
    log.settings.update({"log_info": False})
    assert letters() == "WwEe"
    log.settings.update({"log_info": True, "log_warning": False, "log_error": False})
    assert letters() == "IiI]"
    log.settings.update({"log_info": False, "log_verbose_level": 1})
    assert letters() == "I1"
    log.settings.update({"log_verbose_level": 2})
    assert letters() == "I1I2"


def test_streams(capfd: pytest.CaptureFixture[str]) -> None:
    log = Log(escape=True)
    log.info("i")
    log.verbose(0, "v")
    log.warning("w")
    log.error("e")
    log.close()
    out, err = capfd.readouterr()
    assert [line[0] + line[-2] for line in out.splitlines()] == ["Ii", "Iv"]
    assert [line[0] + line[-2] for line in err.splitlines()] == ["Ww", "Ee"]


def test_a_log_file_takes_everything_and_is_appended_to(log_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log_file.write_text("before\n")
    log = Log(LogSettings(log_file=str(log_file)))
    log.info("i")
    log.error("e")
    log.close()
    assert [line[0] for line in log_file.read_text().splitlines()] == ["b", "I", "E"]
    assert capfd.readouterr() == ("", "")


def test_a_log_file_that_cannot_be_opened_is_said_and_the_console_stays(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = Log(LogSettings(log_file=str(tmp_path / "no" / "file")), escape=True)
    log.info("i")
    log.close()
    out, err = capfd.readouterr()
    assert out.endswith('"i"\n')
    assert "No such file or directory; the log goes to the console" in err
    assert log.settings.as_dict()["log_file"] == ""


def test_lost_lines_are_counted_and_reported(capfd: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    saved = os.dup(1)
    try:
        os.dup2(writer, 1)
        os.close(reader)
        log = Log(escape=True)
        log.info("lost")
        log.info("lost")
        assert log.dropped == 2
        log.error("kept")
        log.error("kept")
        log.close()
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(writer)
    lines = capfd.readouterr().err.splitlines()
    assert [line.split("] ")[1] for line in lines] == ['"kept"', "2 log records were dropped: nobody took them", '"kept"']


def test_lines_relayed_for_another_process(log: Log, log_file: Path) -> None:
    log.record("W", "from afar", "model.py:7", 4242)
    assert log_file.read_text().endswith(' 4242 model.py:7] "from afar"\n')


def test_settings_come_from_the_command_line() -> None:
    options = parse(["--log-info=0", "--log-verbose=3", "--log-format=ISO8601", "--log-file=f", "--log-error=off"], {})
    assert settings_of(options).as_dict() == {
        "log_file": "f",
        "log_info": False,
        "log_warning": True,
        "log_error": False,
        "log_verbose_level": 3,
        "log_format": "ISO8601",
    }


def refused(settings: LogSettings, changes: object) -> tuple[Code, str]:
    with pytest.raises(StatusError) as raised:
        settings.update(changes)
    return raised.value.code, raised.value.message


@pytest.mark.parametrize("value", ["x", "", 3])
def test_the_file_cannot_be_changed(value: object) -> None:
    expected = (Code.UNSUPPORTED, "log file location can not be updated through network protocol")
    assert refused(LogSettings(), {"log_file": value}) == expected


@pytest.mark.parametrize("value", ["x", "iso8601", ""])
def test_unknown_formats(value: str) -> None:
    assert refused(LogSettings(), {"log_format": value}) == (Code.UNAVAILABLE, f"invalid argument for --log_format, got: {value}")


def test_wrong_types() -> None:
    settings = LogSettings()
    for name in ("log_info", "log_warning", "log_error"):
        wrong: tuple[object, ...] = (1, "true", [], 0.0)
        for value in wrong:
            assert refused(settings, {name: value}) == (Code.INTERNAL, "attempt to access JSON non-boolean as boolean")
    for level in (-1, 1.0, True, "1", 1 << 64):
        expected = (Code.INTERNAL, "attempt to access JSON non-unsigned-integer as unsigned-integer")
        assert refused(settings, {"log_verbose_level": level}) == expected
    assert refused(settings, {"log_format": 3}) == (Code.INTERNAL, "attempt to access JSON non-string as string")
    assert settings == LogSettings()


@pytest.mark.parametrize(
    ("level", "kept"), [(0, 0), (7, 7), (1 << 32, 0), ((1 << 32) + 1, 1), (1 << 31, 0), ((1 << 64) - 1, 0), ((1 << 31) - 1, (1 << 31) - 1)]
)
def test_verbose_levels_are_cut_to_32_bits(level: int, kept: int) -> None:
    settings = LogSettings()
    settings.update({"log_verbose_level": level})
    assert settings.log_verbose_level == kept


def test_nulls_and_unknown_members_change_nothing() -> None:
    settings = LogSettings(log_info=False)
    nulls = dict.fromkeys(settings.as_dict())
    harmless: tuple[object, ...] = ({}, nulls, {"foo": 1}, [], None, 3)
    for changes in harmless:
        settings.update(changes)
    assert settings == LogSettings(log_info=False)


def test_a_late_error_leaves_earlier_changes_standing() -> None:
    settings = LogSettings()
    assert refused(settings, {"log_format": "z", "log_info": False})[0] is Code.UNAVAILABLE
    assert settings.log_info is False


@pytest.fixture
def library_log(log: Log) -> Iterator[Log]:
    handler = take_library_lines(log)
    yield log
    leave_library_lines(handler)


def test_what_libraries_say_is_logged(library_log: Log, log_file: Path) -> None:
    library = logging.getLogger("some.library")
    library.info("not this")
    library.warning("careful: %s", "x\ny")
    try:
        raise ValueError("inner")
    except ValueError:
        library.exception("it broke")
    lines = log_file.read_text().splitlines()
    assert [line[0] for line in lines] == ["W", "E"]
    assert re.search(r'test_log\.py:\d+\] "some\.library: careful: x\\ny"$', lines[0])
    assert "Traceback" in lines[1]


def test_a_library_s_broken_line_is_logged_unformatted(log: Log, log_file: Path) -> None:
    record = logging.makeLogRecord(
        {"name": "lib", "levelno": 30, "msg": "three %s %s", "args": ("arguments",), "filename": "f.py", "lineno": 3}
    )
    LibraryLines(log).handle(record)
    assert log_file.read_text().endswith(' f.py:3] "lib: three %s %s"\n')


def test_python_warnings_are_logged(library_log: Log, log_file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old thing", DeprecationWarning, stacklevel=1)
    assert "DeprecationWarning: old thing" in log_file.read_text()


def test_library_lines_obey_the_switches(library_log: Log, log_file: Path) -> None:
    library_log.settings.update({"log_warning": False})
    logging.getLogger("x").warning("w")
    logging.getLogger("x").error("e")
    assert [line[0] for line in log_file.read_text().splitlines()] == ["E"]


@pytest.mark.parametrize("speak", [Log.info, Log.warning, Log.error])
def test_logging_never_raises(speak: Callable[[Log, str], None], log_file: Path) -> None:
    log = Log(LogSettings(log_file="/dev/full"))
    speak(log, "x")
    assert log.dropped == 1
    log.close()
