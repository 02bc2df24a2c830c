"""What a check prints: text for people and editors, JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from .findings import Finding, Severity
from .run import ModelReport

_COLOURS = {Severity.ERROR: "31", Severity.WARNING: "33", Severity.NOTE: "36"}


def text_report(reports: Sequence[ModelReport], elapsed_secs: float, *, strict: bool, colour: bool) -> str:
    """A block for each model, and a summary line. Lines of findings are ``path:line:column: severity: message``."""
    blocks = [_block(report, colour) for report in reports]
    # What is well is one line, with no empty ones around it.
    text = ""
    for number, block in enumerate(blocks):
        long = len(block) > 1 or (number > 0 and len(blocks[number - 1]) > 1)
        text += ("\n" if text and long else "") + "\n".join(block) + "\n"
    return f"{text}\n{summary(reports, elapsed_secs, strict=strict)}\n" if text else f"{summary(reports, elapsed_secs, strict=strict)}\n"


def _block(report: ModelReport, colour: bool) -> list[str]:
    worst = worst_of(report.findings)
    word = "ok" if worst in (None, Severity.NOTE) else str(worst)
    title = shown(report.name) if report.name else f"repository {shown(report.directory)}"
    state = f" ({shown(report.state)})" if report.state else ""
    lines = [f"{_bold(title, colour)}{state}: {_coloured(word, '32' if word == 'ok' else _COLOURS[Severity(word)], colour)}"]
    for finding in report.findings:
        place = "" if finding.line is None else f":{finding.line}:{finding.column}"
        severity = _coloured(finding.severity, _COLOURS[finding.severity], colour)
        lines.append(f"{shown(finding.path)}{place}: {severity}: {shown(finding.message)}")
        if finding.hint:
            lines += [f"    {shown(line)}" for line in finding.hint.split("\n")]
    return lines


def summary(reports: Iterable[ModelReport], elapsed_secs: float, *, strict: bool) -> str:
    """One line: how many models, errors and warnings."""
    reports = list(reports)
    counts = [
        _count(sum(finding.severity is severity for report in reports for finding in report.findings), str(severity))
        for severity in (Severity.ERROR, Severity.WARNING)
    ]
    models = _count(sum(bool(report.name) for report in reports), "model")
    as_errors = " (as errors)" if strict else ""
    return f"{models} checked in {elapsed_secs:.1f} s: {counts[0]}, {counts[1]}{as_errors}"


def json_report(reports: Iterable[ModelReport]) -> str:
    """All findings as one JSON array of objects: path, line, column, severity, model, message, hint; line and column may be null."""
    rows = []
    for report in reports:
        for finding in report.findings:
            members = asdict(finding)
            rows.append({name: members[name] for name in ("path", "line", "column", "severity", "model", "message", "hint")})
    # Names that are no Unicode come as they are read: escaped, one by one.
    return json.dumps(rows, indent=2) + "\n"


def worst_of(findings: Iterable[Finding]) -> Severity | None:
    """The worst severity of some findings, None where there are none."""
    order = list(Severity)
    return min((finding.severity for finding in findings), key=order.index, default=None)


def failed(reports: Iterable[ModelReport], *, strict: bool) -> bool:
    """Is there an error? ``strict``: or a warning?"""
    bad = (Severity.ERROR, Severity.WARNING) if strict else (Severity.ERROR,)
    return any(finding.severity in bad for report in reports for finding in report.findings)


def shown(text: str) -> str:
    """A text on one line that cannot play with the terminal: what is not printable is escaped."""
    return "".join(letter if letter.isprintable() else f"\\u{ord(letter):04X}" for letter in text)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _coloured(text: str, code: str, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour else text


def _bold(text: str, colour: bool) -> str:
    return _coloured(text, "1", colour)
