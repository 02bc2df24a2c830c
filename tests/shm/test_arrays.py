"""numpy when it is first used."""

from __future__ import annotations

import subprocess
import sys

LATER = """
import sys, types
from concurrent.futures import ThreadPoolExecutor
from tensorfarm.shm.arrays import np
from tensorfarm.shm.datatypes import DATATYPES, Datatype
INT32 = DATATYPES["INT32"]
assert INT32.byte_size == 4 and hash(INT32) and not hasattr(INT32, "no_such_thing") and type(INT32) is not Datatype
assert "numpy" not in sys.modules
with ThreadPoolExecutor(8) as threads:
    kinds = set(threads.map(lambda number: INT32.dtype.str, range(64)))
assert kinds == {"<i4"} and {type(datatype) for datatype in DATATYPES.values()} == {Datatype}
with ThreadPoolExecutor(8) as threads:
    sums = list(threads.map(lambda number: int(np.arange(number).sum()), range(64)))
assert sums == [number * (number - 1) // 2 for number in range(64)]
assert type(np) is types.ModuleType and np.ndarray is sys.modules["numpy"].ndarray
for datatype in DATATYPES.values():
    assert datatype.dtype is datatype.dtype and datatype.byte_size in (datatype.dtype.itemsize, 0), datatype
try:
    np.no_such_thing
except AttributeError as error:
    print(error)
"""


def test_the_stand_in_becomes_numpy_in_whatever_thread_asks_first() -> None:
    done = subprocess.run([sys.executable, "-c", LATER], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "no_such_thing" in done.stdout, done.stderr
