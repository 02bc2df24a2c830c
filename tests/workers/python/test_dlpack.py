from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tensorfarm.workers.python import dlpack
from tensorfarm.workers.python.errors import TritonModelException
from tensorfarm.workers.python.tensor import Tensor

from .fake_host import received

NOT_CONTIGUOUS = "DLPack tensor is not contiguous. Only contiguous DLPack tensors that are stored in C-Order are supported."


class Producer:
    """As torch is one: an object with the two methods. The capsules are numpy's."""

    def __init__(self, array: np.ndarray[Any, Any], device: tuple[int, int] = (1, 0)) -> None:
        self._array = array
        self._device = device

    def __dlpack__(self, stream: object = None) -> object:
        return self._array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device


class Consumer:
    """Reads a capsule as C code does, and gives it back when told."""

    def __init__(self, capsule: Any) -> None:
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        rename = ctypes.pythonapi.PyCapsule_SetName
        rename.restype, rename.argtypes = ctypes.c_int, [ctypes.py_object, ctypes.c_char_p]
        self.address = pointer(capsule, b"dltensor")
        self.name = b"used_dltensor"
        rename(capsule, self.name)
        self.managed = dlpack._Managed.from_address(self.address)

    def give_back(self) -> None:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.managed.deleter)(self.address)


@pytest.mark.parametrize("dtype", ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"])
@pytest.mark.parametrize("wrapped", [True, False], ids=["object", "capsule"])
def test_what_numpy_gives_is_taken_without_a_copy(dtype: str, wrapped: bool) -> None:
    array = np.array([[0, 1], [1, 0]], dtype)
    tensor = Tensor.from_dlpack("X", Producer(array) if wrapped else array.__dlpack__())
    assert tensor.as_numpy().dtype == array.dtype and tensor.shape() == [2, 2]
    assert np.shares_memory(tensor.as_numpy(), array) and tensor.as_numpy().flags.writeable
    array[0, 0] = 1
    assert tensor.as_numpy()[0, 0] == 1 and tensor.place is None


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (1, 1), (3, 1, 2)])
def test_shapes_go_both_ways(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    assert Tensor.from_dlpack("X", array.__dlpack__()).as_numpy().tolist() == array.tolist()
    assert np.from_dlpack(Tensor("X", array)).tolist() == array.tolist()
    bits = Tensor.from_dlpack("X", received("H", "BF16", shape, bytes(2 * array.size))[0].to_dlpack())
    assert bits.shape() == list(shape) and bits.datatype == "BF16"


def test_an_owner_lives_as_long_as_the_tensor_or_its_array() -> None:
    class Owner(np.ndarray[Any, Any]):
        pass

    array = np.arange(4).view(Owner)
    gone = weakref.ref(array)
    tensor = Tensor.from_dlpack("X", Producer(array))
    del array
    taken = tensor.as_numpy()[1:]
    del tensor
    gc.collect()
    assert gone() is not None and taken.tolist() == [1, 2, 3]
    del taken
    gc.collect()
    assert gone() is None


def test_a_capsule_is_taken_once_and_called_used() -> None:
    capsule: Any = np.arange(2).__dlpack__()
    Tensor.from_dlpack("X", capsule)
    assert "used_dltensor" in repr(capsule)
    with pytest.raises(TritonModelException, match="Provided tensor is not supported"):
        Tensor.from_dlpack("X", capsule)


def test_what_is_refused_stays_the_producers() -> None:
    capsule: Any = np.arange(8)[::2].__dlpack__()
    with pytest.raises(TritonModelException) as raised:
        Tensor.from_dlpack("X", capsule)
    assert str(raised.value) == NOT_CONTIGUOUS
    assert '"dltensor"' in repr(capsule)


@pytest.mark.parametrize("source", [5, [1], None, "x"])
def test_what_is_no_producer(source: object) -> None:
    with pytest.raises(TritonModelException) as raised:
        Tensor.from_dlpack("X", source)
    assert str(raised.value) == (
        "Provided tensor is not supported. Tensor must be a DLPack capsule         or have `__dlpack__` and `__dlpack_device__` attributes"
    )


@pytest.mark.parametrize("array", [np.arange(6).reshape(2, 3).T, np.arange(8)[::2]])
@pytest.mark.parametrize("wrapped", [True, False])
def test_order(array: np.ndarray[Any, Any], wrapped: bool) -> None:
    with pytest.raises(TritonModelException) as raised:
        Tensor.from_dlpack("X", Producer(array) if wrapped else array)
    assert str(raised.value) == NOT_CONTIGUOUS


def test_other_types_and_places() -> None:
    for array in (np.zeros(2, complex), np.zeros(2, ">i4"), np.zeros(2, "U1")):
        with pytest.raises(TritonModelException, match=r"^DLPack tensor type is not supported\.$"):
            Tensor.from_dlpack("X", array)
    with pytest.raises(TritonModelException, match="type is not supported"):
        Tensor.from_dlpack("X", Producer(np.zeros(2, complex)))
    with pytest.raises(TritonModelException, match="device's memory"):
        Tensor.from_dlpack("X", Producer(np.zeros(2), (4, 0)))
    with pytest.raises(TritonModelException, match=r"^Tensor name cannot be an empty string\.$"):
        Tensor.from_dlpack("", np.zeros(2))


def test_arrays_that_may_not_be_written_to() -> None:
    array = np.arange(3)
    array.flags.writeable = False
    assert Tensor.from_dlpack("X", array).as_numpy() is array
    # a capsule cannot say so: a consumer gets a copy
    shared = np.from_dlpack(Tensor("X", array))
    assert shared.tolist() == [0, 1, 2] and not np.shares_memory(shared, array)


def test_a_tensor_is_a_producer() -> None:
    array = np.arange(3, dtype=np.int32)
    tensor = Tensor("X", array)
    assert tensor.__dlpack_device__() == (1, 0)
    assert np.shares_memory(np.from_dlpack(tensor), array)
    other = Tensor.from_dlpack("Y", tensor)
    assert other.name() == "Y" and other.as_numpy() is array
    assert "dltensor" in repr(tensor.__dlpack__(stream=None))


def test_strings_have_no_capsule() -> None:
    for tensor in (Tensor("S", np.array([b"a"])), received("S", "BYTES", (1,), b"\1\0\0\0a")[0]):
        for take in (tensor.to_dlpack, tensor.__dlpack__, lambda tensor=tensor: Tensor.from_dlpack("Y", tensor)):
            with pytest.raises(TritonModelException, match=r"^DLPack does not have support for string tensors\.$"):
                take()


def test_taking_a_capsule_is_taking_the_array() -> None:
    tensor, memory = received("X", "INT32", (2,), bytes(8))
    view = np.from_dlpack(tensor)
    assert tensor.place is None and memory.asked == 1
    assert np.shares_memory(view, tensor.as_numpy())


def test_bf16_goes_out_and_comes_back_without_a_copy() -> None:
    tensor, _ = received("X", "BF16", (1, 2), b"\x80\x3f\x00\x40")
    again = Tensor.from_dlpack("Y", tensor.to_dlpack())
    assert (again.datatype, again.shape(), again.place) == ("BF16", [1, 2], None)
    first, second = tensor.content(), again.content()
    assert isinstance(first, np.ndarray) and isinstance(second, np.ndarray)
    assert np.shares_memory(first, second) and second.tolist() == [[0x3F80, 0x4000]]
    with pytest.raises(TritonModelException, match="BF16"):
        again.as_numpy()


def test_a_bf16_capsule_says_what_it_is() -> None:
    tensor, _ = received("X", "BF16", (3, 2), bytes(range(12)))
    consumer = Consumer(tensor.to_dlpack())
    told = consumer.managed.tensor
    assert (told.type.code, told.type.bits, told.type.lanes) == (4, 16, 1)
    assert (told.device.kind, told.device.number, told.byte_offset) == (1, 0, 0)
    assert told.shape[: told.rank] == [3, 2] and (not told.strides or told.strides[: told.rank] == [2, 1])
    assert ctypes.string_at(told.content, 12) == bytes(range(12))
    consumer.give_back()


def a_watched_capsule(datatype: str) -> tuple[object, Callable[[], object]]:
    """A capsule, and what is None once its memory may go."""

    class Owner(np.ndarray[Any, Any]):
        pass

    array = np.array([1, 0], "u2" if datatype == "BF16" else "?").view(Owner)
    return dlpack.given(array, datatype), weakref.ref(array)


@pytest.mark.parametrize("datatype", ["BF16", "BOOL"])
def test_a_consumer_keeps_the_memory_until_it_gives_it_back(datatype: str) -> None:
    capsule, gone = a_watched_capsule(datatype)
    consumer = Consumer(capsule)
    del capsule
    gc.collect()
    assert gone() is not None
    assert ctypes.string_at(consumer.managed.tensor.content, 1) == b"\1"
    consumer.give_back()
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("datatype", ["BF16", "BOOL"])
def test_a_capsule_that_nobody_takes_lets_go(datatype: str) -> None:
    capsule, gone = a_watched_capsule(datatype)
    gc.collect()
    assert gone() is not None
    del capsule
    gc.collect()
    assert gone() is None


def test_a_capsule_may_die_of_an_exception() -> None:
    """In a process of its own: where that goes wrong, it crashes. The capsule lies on the stack that the exception unwinds."""
    script = (
        "import numpy as np\n"
        "from tensorfarm.workers.python import dlpack\n"
        "for datatype in ('BF16', 'BOOL', 'FP32'):\n"
        "    array = np.zeros(2, {'BF16': 'u2', 'BOOL': '?', 'FP32': 'f4'}[datatype])\n"
        "    try:\n"
        "        (dlpack.given(array, datatype), 1 // 0)\n"
        "    except ZeroDivisionError:\n"
        "        print(datatype)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout.split(), ended.stderr) == (0, [b"BF16", b"BOOL", b"FP32"], b"")
