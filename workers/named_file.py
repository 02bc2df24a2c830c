"""Files that a model's configuration names, in folders of the model's that are kept for them."""

from __future__ import annotations

import os
import stat

from .contract.status import internal, invalid


def read_named(directory: str, folder: str, file: str, field: str, model: str, byte_size: int = -1) -> bytes:
    """The first ``byte_size`` bytes of a file in a folder of a model's ``directory``, all of it where that is -1.

    ``field`` is the one that names it. Raises StatusError INVALID_ARG for what is no file in there, INTERNAL for what cannot be read.
    """
    root = os.path.realpath(os.path.join(directory, folder))
    # A zero byte is in no file's name, and nothing that realpath takes.
    path = os.path.realpath(os.path.join(root, file)) if "\0" not in file else ""
    if not path.startswith(root + os.sep):
        raise invalid(f"{field} '{file}' leaves the folder '{folder}' of model '{model}'")
    try:
        # Not waiting for whoever might write to a pipe.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise invalid(f"{field} '{file}' of model '{model}' is not a regular file")
            return opened.read(byte_size)
    except OSError as error:
        raise internal(f"failed to open text file for read {model}/{folder}/{file}: {error.strerror}") from error
