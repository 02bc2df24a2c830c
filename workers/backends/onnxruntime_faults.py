"""What ONNX Runtime raises, as errors fit for a client's eyes."""

from __future__ import annotations

import re

from ..contract.status import StatusError, internal

_CODED = re.compile(r"\[ONNXRuntimeError\] : (\d+) : \w+ : ")
_BOUND = re.compile(r"Error in execution: ")
_SOURCE_FILE = re.compile(r"(?<!\S)/(?:[\w.+-]+/)+([\w.+-]+\.(?:cc|cpp|cu|cuh|h|hpp):\d+)")

FAIL = 1
INVALID_ARGUMENT = 2


def runtime_fault(error: BaseException, hidden: dict[str, str]) -> StatusError:
    """The INTERNAL error for an exception of ONNX Runtime: ``onnx runtime error <code>: <message>``.

    ``hidden`` maps paths that a client must not see to what it sees instead. Of the paths in ONNX
    Runtime's own source only the file's name stays. Node names, which look like paths too, stay whole.
    """
    text = str(error).strip() or type(error).__name__
    coded = _CODED.match(text)
    bound = _BOUND.match(text)
    if coded is not None:
        code, text = int(coded[1]), text[coded.end() :]
    elif bound is not None:
        # A run on a binding loses its code; only the checks before the first node fail without this start.
        text = text[bound.end() :]
        code = FAIL if text.startswith("Non-zero status code") else INVALID_ARGUMENT
    else:
        code = FAIL
    for path, shown in hidden.items():
        text = text.replace(path, shown)
    text = _SOURCE_FILE.sub(r"\1", text)
    return internal(f"onnx runtime error {code}: {text}")
