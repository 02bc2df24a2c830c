"""Bad flags: the message that follows the usage text, the exit code, and which stream gets it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .. import oracle as real
from ..servers import Finished, run_tensorfarm

CASES = (
    ["--help"],
    ["--nosuch"],
    ["--nosuch=1"],
    ["-x"],
    ["stray"],
    ["--http-port"],
    ["--http-port="],
    ["--http-port=abc"],
    ["--http-port=99999999999999"],
    ["--http-port", "abc"],
    ["--http-p=abc"],
    ["--http=1"],
    ["--allow-http=maybe"],
    ["--log-info=2"],
    ["--log-verbose=x"],
    ["--log-verbose=true", "stray"],
    ["--log-format=xml"],
    ["--model-control-mode=sometimes"],
    ["--rate-limit=fast"],
    ["--load-model=a"],
    ["--model-config-name="],
    ["--disable-auto-complete-config=1"],
    ["--strict-model-config=x"],
    ["--http-restricted-api=abc"],
    ["--http-restricted-api=nosuch:k=v"],
    ["--http-restricted-api=health:k=v", "--http-restricted-api=health:l=v"],
    ["--grpc-restricted-protocol=a"],
    ["--backend-config=a"],
    ["--backend-config=,a=b"],
    ["--backend-config=x,a"],
    ["--host-policy=a"],
    ["--host-policy=p,x=y"],
    ["--metrics-config=a"],
    ["--cache-config=a"],
    ["--trace-config=a"],
    ["--trace-config=x,a=b"],
    ["--trace-config=level=WHAT"],
    ["--trace-rate=x"],
    ["--cuda-memory-pool-byte-size=1"],
    ["--cuda-memory-pool-byte-size=a:b"],
    ["--model-load-gpu-limit=-1:0.5"],
    ["--rate-limit-resource=a"],
    ["--grpc-infer-response-compression-level=x"],
    ["--exit-timeout-secs=soon"],
    ["--min-supported-compute-capability=x"],
    ["--response-cache-byte-size=1", "--cache-config=local,size=1"],
    ["--http-address=127.0.0.1", "--model-repository=/", "--http-port=9999", "--metrics-port=9999"],
)

DIFFERENCES: dict[str, str] = {}
"""Command lines that are answered otherwise, by what tensorfarm must say at the end."""


def _id(arguments: list[str]) -> str:
    return " ".join(arguments)


def _said(finished: Finished) -> tuple[int, str, str, str]:
    """Exit code, standard output, what precedes the usage text, what follows it. The program's own name is replaced."""
    before, _, rest = finished.stderr.partition("Usage: ")
    if not rest:
        before, rest = "", finished.stderr
    lines = rest.splitlines()
    usage = max((at for at, line in enumerate(lines) if line.startswith((" ", "\t"))), default=-1)
    after = "\n".join(lines[usage + 1 :])
    before = re.sub(r"(?m)^\S+: (?=unrecognized|option|invalid option)", "PROGRAM: ", before)
    return finished.code, finished.stdout, re.sub(r"possibilities:.*", "possibilities", before), after.strip()


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], Finished]]:
    """What both servers say to every command line; run a few at a time, since each takes a start of its own."""
    real.require()
    root = tmp_path_factory.mktemp("command-line")
    jobs = [(who, arguments) for arguments in CASES for who in ("oracle", "farm")]

    def run(job: tuple[str, list[str]]) -> Finished:
        who, arguments = job
        folder: Path = root / who / str(CASES.index(arguments))
        return real.run(*arguments, folder=folder) if who == "oracle" else run_tensorfarm(*arguments, folder=folder)

    with ThreadPoolExecutor(3) as pool:
        yield {(who, _id(arguments)): finished for (who, arguments), finished in zip(jobs, pool.map(run, jobs), strict=True)}


@pytest.mark.parametrize("arguments", CASES, ids=_id)
def test_bad_flags(arguments: list[str], said: dict[tuple[str, str], Finished]) -> None:
    expected, got = (_said(said[who, _id(arguments)]) for who in ("oracle", "farm"))
    if _id(arguments) in DIFFERENCES:
        assert got != expected, "the servers agree: take it off the list of differences"
        assert got[0] == expected[0]
        assert got[3] == DIFFERENCES[_id(arguments)]
    else:
        assert got == expected
