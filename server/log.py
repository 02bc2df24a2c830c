"""The server's log, in tritonserver's line formats: INFO to stdout, WARNING and ERROR to stderr, or all of it to one file.

Nothing here raises or waits for whoever reads the log: what cannot be written is dropped and counted.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass

from ..workers.contract.status import internal, unavailable, unsupported
from .options import Options
from .sink import Sink

FORMATS = ("default", "ISO8601")
MESSAGE_LIMIT = 32 << 10
"""The most characters of one message that are written."""

_ESCAPES = {code: f"\\u{code:04X}" for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}
_ESCAPES |= {ord(plain): f"\\{letter}" for plain, letter in ('""', "\\\\", "\bb", "\ff", "\nn", "\rr", "\tt")}


@dataclass(slots=True)
class LogSettings:
    """What is logged, and how; the logging extension of the protocol reads and changes it while the server runs."""

    log_file: str = ""
    """The file the log goes to; "" is the console."""
    log_info: bool = True
    log_warning: bool = True
    log_error: bool = True
    log_verbose_level: int = 0
    log_format: str = "default"

    def as_dict(self) -> dict[str, str | bool | int]:
        """All six settings, in the order of the protocol."""
        return asdict(self)

    def update(self, changes: object) -> None:
        """Take over the settings in a parsed JSON object; nulls and unknown members (and anything but an object) change nothing.

        Members are taken one by one in the order of the protocol, so that a bad one leaves those before it changed.
        Raises `StatusError`: UNSUPPORTED for the file's name, UNAVAILABLE for an unknown format, INTERNAL for wrong types.
        """
        if not isinstance(changes, dict):
            return
        if changes.get("log_file") is not None:
            raise unsupported("log file location can not be updated through network protocol")
        for name in ("log_info", "log_warning", "log_error"):
            value = changes.get(name)
            if value is None:
                continue
            if not isinstance(value, bool):
                raise internal("attempt to access JSON non-boolean as boolean")
            setattr(self, name, value)
        level = changes.get("log_verbose_level")
        if level is not None:
            self.log_verbose_level = _verbose_level(level)
        chosen = changes.get("log_format")
        if chosen is not None:
            if not isinstance(chosen, str):
                raise internal("attempt to access JSON non-string as string")
            if chosen not in FORMATS:
                raise unavailable(f"invalid argument for --log_format, got: {chosen}")
            self.log_format = chosen


def _verbose_level(value: object) -> int:
    """An unsigned 64-bit JSON integer, of which the low 32 bits count as a signed number; below zero is off."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 64:
        raise internal("attempt to access JSON non-unsigned-integer as unsigned-integer")
    low = value & 0xFFFF_FFFF
    return low if low < 1 << 31 else 0


def settings_of(options: Options) -> LogSettings:
    """The log settings that the command line asked for."""
    return LogSettings(
        log_file=options.log_file,
        log_info=options.log_info,
        log_warning=options.log_warning,
        log_error=options.log_error,
        log_verbose_level=max(0, options.log_verbose),
        log_format=options.log_format,
    )


class Log:
    """One log. `settings` may be changed at any time and takes effect with the next line."""

    def __init__(self, settings: LogSettings | None = None, *, escape: bool | None = None) -> None:
        """``escape`` quotes messages as JSON strings; None: unless the environment says TRITON_SERVER_ESCAPE_LOG_MESSAGES=0."""
        self.settings = LogSettings()
        self._escape = os.environ.get("TRITON_SERVER_ESCAPE_LOG_MESSAGES") != "0" if escape is None else escape
        self._sinks: dict[str, Sink] = {}
        self._lock = threading.RLock()
        self._reported = 0
        self._second = -1
        self._second_texts = ("", "")
        if settings is not None:
            self.configure(settings)

    def configure(self, settings: LogSettings) -> None:
        """Log by these settings from now on, and open their file. One that cannot be opened is warned about; the console stays."""
        self.close()
        self.settings = settings
        if settings.log_file:
            try:
                descriptor = os.open(settings.log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                name, settings.log_file = settings.log_file, ""
                self.warning(f"failed to open log file '{name}': {reason}; the log goes to the console")
            else:
                self._sinks["file"] = Sink(descriptor, owned=True)

    @property
    def dropped(self) -> int:
        """How many records have been lost since `configure`."""
        return sum(sink.dropped for sink in self._sinks.values())

    def takes(self, severity: str) -> bool:
        """Do the switches let a line through: I, W, E, or V for a verbose one of the first level?"""
        settings = self.settings
        switches = {"I": settings.log_info, "W": settings.log_warning, "E": settings.log_error, "V": settings.log_verbose_level >= 1}
        return switches.get(severity, False)

    def info(self, message: str) -> None:
        """A line about what goes on as it should."""
        if self.settings.log_info:
            self.record("I", message, _caller())

    def warning(self, message: str) -> None:
        """A line about what somebody may want to change."""
        if self.settings.log_warning:
            self.record("W", message, _caller())

    def error(self, message: str) -> None:
        """A line about what failed."""
        if self.settings.log_error:
            self.record("E", message, _caller())

    def verbose(self, level: int, message: str) -> None:
        """A line of detail, logged if the verbose level is at least ``level``; it carries the letter of INFO, but not its switch."""
        if self.settings.log_verbose_level >= level:
            self.record("I", message, _caller())

    def table(self, text: str) -> None:
        """Lines of plain text at INFO, under a line of their own and as they are: only for text that is safe to show."""
        if self.settings.log_info:
            self._write("I", f"{self._prefix('I', _caller(), os.getpid())}\n{text}")

    def record(self, severity: str, message: str, place: str, pid: int | None = None) -> None:
        """Log a message without looking at the switches.

        ``severity`` is I, W or E, ``place`` is ``file:line``; ``pid`` is that of the process that said it, where it was
        another one.
        """
        if len(message) > MESSAGE_LIMIT:
            message = f"{message[:MESSAGE_LIMIT]}... ({len(message) - MESSAGE_LIMIT} more characters)"
        if self._escape:
            message = f'"{message.translate(_ESCAPES)}"'
        self._write(severity, self._prefix(severity, place, os.getpid() if pid is None else pid) + message)

    def _prefix(self, severity: str, place: str, pid: int) -> str:
        now_ns = time.time_ns()
        second = now_ns // 1_000_000_000
        if second != self._second:
            utc = time.gmtime(second)
            self._second_texts = (time.strftime("%m%d %H:%M:%S", utc), time.strftime("%Y-%m-%dT%H:%M:%SZ", utc))
            self._second = second
        plain, iso = self._second_texts
        if self.settings.log_format == "ISO8601":
            return f"{iso} {severity} {pid} {place}] "
        return f"{severity}{plain}.{now_ns % 1_000_000_000 // 1000:06d} {pid} {place}] "

    def _write(self, severity: str, line: str) -> None:
        sink = self._sinks.get("file") or self._console(1 if severity == "I" else 2)
        written = sink.write(f"{line}\n".encode("utf-8", "backslashreplace"))
        if written and self.dropped > self._reported:
            lost, self._reported = self.dropped - self._reported, self.dropped
            notice = self._prefix("W", _here(), os.getpid())
            sink.write(f"{notice}{lost} log records were dropped: nobody took them\n".encode())

    def _console(self, descriptor: int) -> Sink:
        name = str(descriptor)
        with self._lock:
            sink = self._sinks.get(name)
            if sink is None:
                sink = self._sinks[name] = Sink(descriptor)
            return sink

    def close(self, timeout_s: float = 1.0) -> None:
        """Flush, and close what was opened. A later line goes to the console again."""
        sinks, self._sinks = self._sinks, {}
        self._reported = 0
        for sink in sinks.values():
            sink.close(timeout_s)


def _caller() -> str:
    """``file:line`` of the code that called the logging function that called this."""
    frame = sys._getframe(2)
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"


def _here() -> str:
    frame = sys._getframe(1)
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"


class LibraryLines(logging.Handler):
    """Takes what libraries say through ``logging`` at WARNING and above into our log."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record of ``logging`` to our log, under our switches."""
        severity = "E" if record.levelno >= logging.ERROR else "W"
        if not self._log.takes(severity):
            return
        try:
            message = self.format(record)
        except (TypeError, ValueError, LookupError, AttributeError, RuntimeError):  # arguments that do not fit the library's own format
            message = f"{record.name}: {record.msg}"
        self._log.record(severity, message, f"{record.filename}:{record.lineno}")


def take_library_lines(log: Log) -> LibraryLines:
    """Route ``logging`` (and the ``warnings`` module) into the log; give the result to `leave_library_lines` to stop that."""
    handler = LibraryLines(log)
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)
    return handler


def leave_library_lines(handler: LibraryLines) -> None:
    """Undo `take_library_lines`."""
    logging.captureWarnings(False)
    logging.getLogger().removeHandler(handler)
