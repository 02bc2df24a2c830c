"""The real ONNX Runtime with execution providers for CUDA and TensorRT that compute on the CPU, in the stand-in's device memory.

What is bound to a device lies at addresses of the stand-in; the real binding gets the aliases. As with the real one, a run waits for
none of the streams of others, and what a CUDA graph was captured with must be bound again for each run.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from onnxruntime.capi import _pybind_state, onnxruntime_inference_collection
from onnxruntime.capi import onnxruntime_pybind11_state as native

from . import driver, ledger, settings
from .errors import ILLEGAL_ADDRESS, INVALID_DEVICE, MISALIGNED_ADDRESS, Refused

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

ALIGNMENT_BYTE_SIZE = 256
"""What kernels may count on."""

_GRAPH_KEY = "gpu_graph_id"
_GRAPH_OPTIONS = {CUDA: "enable_cuda_graph", TENSORRT: "trt_cuda_graph_enable"}

_RealSession: Any = native.InferenceSession
_RealBinding: Any = native.SessionIOBinding
_PublicSession: Any = onnxruntime_inference_collection.InferenceSession
_value_from_shape: Any = native.OrtValue.ortvalue_from_shape_and_type
_value_from_numpy: Any = native.OrtValue.ortvalue_from_numpy

CPU: Any = native.OrtDevice(native.OrtDevice.cpu(), native.OrtDevice.default_memory(), 0)

# Numbers of ONNX's TensorProto.DataType, with their bytes and ONNX Runtime's names.
_ELEMENTS = {
    1: (4, "float"),
    2: (1, "uint8"),
    3: (1, "int8"),
    4: (2, "uint16"),
    5: (2, "int16"),
    6: (4, "int32"),
    7: (8, "int64"),
    9: (1, "bool"),
    10: (2, "float16"),
    11: (8, "double"),
    12: (4, "uint32"),
    13: (8, "uint64"),
    16: (2, "bfloat16"),
}
_NUMBERS = {
    np.dtype(name): number
    for number, name in (
        (1, "float32"),
        (2, "uint8"),
        (3, "int8"),
        (4, "uint16"),
        (5, "int16"),
        (6, "int32"),
        (7, "int64"),
        (9, "bool"),
        (10, "float16"),
        (11, "float64"),
        (12, "uint32"),
        (13, "uint64"),
    )
}


def _number_of(element_type: Any) -> int:
    return element_type if isinstance(element_type, int) else _NUMBERS[np.dtype(element_type)]


def _on_device(device: Any) -> bool:
    return bool(device.device_type() == native.OrtDevice.cuda())


def _words(status: int) -> str:
    return (
        f"CUDA failure {status}: {Refused(status).text} ; GPU=0 ; hostname=x ; "
        "file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc ; line=1 ; expr=cudaStreamSynchronize(stream)"
    )


class DeviceValue:
    """A tensor in device memory, allocated by ONNX Runtime; it goes with the last reference to it."""

    def __init__(self, shape: Sequence[int], element: int, ordinal: int) -> None:
        self._shape = list(shape)
        self._element = element
        self._byte_size = prod(self._shape) * _ELEMENTS[element][0]
        with driver.on_device(ordinal):
            self._address = driver.malloc(max(1, self._byte_size))

    def __del__(self) -> None:
        if hasattr(self, "_address"):
            try:
                driver.free(self._address)
            except Refused:
                return

    def fill(self, content: int) -> None:
        """Copy from host memory, at once."""
        if self._byte_size:
            ctypes.memmove(self.alias(), content, self._byte_size)

    def alias(self) -> int:
        """Where the host finds it."""
        allocation = driver.around(self._address)
        assert allocation is not None
        return allocation.alias

    def data_ptr(self) -> int:
        return self._address

    def device_name(self) -> str:
        return "cuda"

    def shape(self) -> list[int]:
        return list(self._shape)

    def element_type(self) -> int:
        return self._element

    def data_type(self) -> str:
        return f"tensor({_ELEMENTS[self._element][1]})"

    def tensor_size_in_bytes(self) -> int:
        return self._byte_size

    def has_value(self) -> bool:
        return True

    def is_tensor(self) -> bool:
        return True

    def numpy(self) -> Any:
        raise RuntimeError("a tensor in device memory is no array")


class _PlacedValue(DeviceValue):
    """A tensor in device memory that somebody else has bound."""

    def __init__(self, shape: Sequence[int], element: int, address: int) -> None:
        self._shape = list(shape)
        self._element = element
        self._byte_size = prod(self._shape) * _ELEMENTS[element][0]
        self._address = address

    def __del__(self) -> None:
        return


def _value_from_shape_and_type(shape: Sequence[int], dtype: Any, device: Any) -> Any:
    if _on_device(device):
        return DeviceValue(shape, _number_of(dtype), device.device_id())
    return _value_from_shape(shape, dtype, device)


def _value_from_numpy_on(array: Any, device: Any) -> Any:
    if not _on_device(device):
        return _value_from_numpy(array, device)
    made = DeviceValue(array.shape, _NUMBERS[array.dtype], device.device_id())
    made.fill(np.ascontiguousarray(array).__array_interface__["data"][0])
    return made


class _Bound:
    """An address of device memory that a tensor was bound to, and what is wrong with it: 0, nothing; it is found out by the run."""

    def __init__(self, device: int, element: int, shape: Sequence[int], address: int) -> None:
        self.address = address
        self.value = _PlacedValue(shape, element, address)
        self._byte_size = self.value.tensor_size_in_bytes()
        self._device = device

    @property
    def status(self) -> int:
        """What a kernel would end with."""
        if not self._byte_size:
            return 0
        allocation = driver.around(self.address)
        if allocation is None or self.address + self._byte_size > allocation.end or allocation.ordinal != self._device:
            return ILLEGAL_ADDRESS
        return MISALIGNED_ADDRESS if self.address % ALIGNMENT_BYTE_SIZE else 0

    def alias(self) -> int:
        """Where the host finds it; 0 where nothing is."""
        allocation = driver.around(self.address)
        if self.status or allocation is None:
            return 0
        return allocation.alias + self.address - allocation.address


class Binding(_RealBinding):  # type: ignore[misc]
    """As the real one, which it is too, for tensors of both kinds of memory."""

    def __init__(self, session: Any) -> None:
        super().__init__(session.real if isinstance(session, DeviceSession) else session)
        self._on_gpu = isinstance(session, DeviceSession)
        self._ins: dict[str, _Bound | None] = {}
        self._outs: dict[str, _Bound | int | None] = {}
        self._made: dict[str, Any] = {}

    def bind_input(self, name: str, *what: Any) -> None:
        if len(what) == 4 and _on_device(what[0]):
            device, element_type, shape, address = what
            bound = _Bound(device.device_id(), _number_of(element_type), shape, address)
            self._ins[name] = bound
            self._bind_alias(super().bind_input, name, bound)
        else:
            self._ins[name] = None
            super().bind_input(name, *what)

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        if isinstance(value, DeviceValue):
            self._ins[name] = bound = _bound_value(value)
            self._bind_alias(super().bind_input, name, bound)
        else:
            self._ins[name] = None
            super().bind_ortvalue_input(name, value)

    def bind_output(self, name: str, device: Any = CPU, *what: Any) -> None:
        if not _on_device(device):
            self._outs[name] = None
            super().bind_output(name, device, *what)
        elif what:
            element_type, shape, address = what
            bound = _Bound(device.device_id(), _number_of(element_type), shape, address)
            self._outs[name] = bound
            self._bind_alias(super().bind_output, name, bound)
        else:
            self._outs[name] = int(device.device_id())
            super().bind_output(name, CPU)

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        if isinstance(value, DeviceValue):
            self._outs[name] = bound = _bound_value(value)
            self._bind_alias(super().bind_output, name, bound)
        else:
            self._outs[name] = None
            super().bind_ortvalue_output(name, value)

    def _bind_alias(self, bind: Any, name: str, bound: _Bound) -> None:
        if not self._on_gpu:
            raise RuntimeError("There's no data transfer registered for copying tensors from Device:[Type:1] to Device:[Type:0]")
        alias = bound.alias()
        if alias:
            bind(name, CPU, bound.value.element_type(), bound.value.shape(), alias)
        elif not bound.value.tensor_size_in_bytes():
            bind(name, CPU, bound.value.element_type(), bound.value.shape(), ctypes.addressof(_NOTHING))

    def status(self) -> int:
        """What a run would end with: an error of CUDA, or 0."""
        for bound in (*self._ins.values(), *self._outs.values()):
            if isinstance(bound, _Bound) and bound.status:
                return bound.status
        return 0

    def addresses(self) -> dict[str, Any]:
        """What each tensor is bound to; what is not bound to an address in device memory is somewhere else each time."""
        tensors = [(f"in {name}", bound) for name, bound in self._ins.items()] + [
            (f"out {name}", bound) for name, bound in self._outs.items()
        ]
        return {name: bound.address if isinstance(bound, _Bound) else object() for name, bound in tensors}

    def ran(self) -> None:
        """The run has ended: what it has made lies where it was wanted."""
        self._made = {}
        for (name, bound), value in zip(self._outs.items(), super().get_outputs(), strict=True):
            if isinstance(bound, _Bound):
                self._made[name] = bound.value
            elif isinstance(bound, int):
                made = DeviceValue(value.shape(), value.element_type(), bound)
                made.fill(value.data_ptr())
                self._made[name] = made

    def get_outputs(self) -> list[Any]:
        # The real values are not kept: they keep the binding.
        return [self._made.get(name, value) for name, value in zip(self._outs, super().get_outputs(), strict=True)]

    def clear_binding_inputs(self) -> None:
        self._ins.clear()
        super().clear_binding_inputs()

    def clear_binding_outputs(self) -> None:
        self._outs.clear()
        self._made = {}
        super().clear_binding_outputs()


_NOTHING = ctypes.c_uint64()


def _bound_value(value: DeviceValue) -> _Bound:
    allocation = driver.around(value.data_ptr())
    bound = _Bound(-1 if allocation is None else allocation.ordinal, value.element_type(), value.shape(), value.data_ptr())
    bound.value = value  # type: ignore[assignment]
    return bound


class DeviceSession:
    """What lies below a public session: the real one, with what CUDA would say to a run of it. For any thread."""

    def __init__(self, real: Any, options: Mapping[str, Mapping[str, str]]) -> None:
        self.real = real
        self._device = next(int(one.get("device_id", "0")) for one in options.values())
        self._graphing = any(options.get(provider, {}).get(option) in ("1", "True", "true") for provider, option in _GRAPH_OPTIONS.items())
        self._captured: dict[int, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def run(self, names: Any, feeds: Mapping[str, Any], run_options: Any = None) -> Any:
        """With arrays, which are copied to the device and back."""
        self._check("[ONNXRuntimeError] : 1 : FAIL : ", native.Fail)
        self._capture(run_options, {name: object() for name in feeds})
        return self.real.run(names, feeds, run_options)

    def run_with_iobinding(self, binding: Binding, run_options: Any = None) -> None:
        """With what is bound."""
        status = binding.status()
        if status:
            driver.lose(status)
        self._check("Error in execution: ", RuntimeError)
        self._capture(run_options, binding.addresses())
        self.real.run_with_iobinding(binding, run_options)
        try:
            binding.ran()
        except Refused as refused:
            raise RuntimeError(f"Error in execution: {_words(refused.status)}") from None

    def _check(self, start: str, kind: type[Exception]) -> None:
        try:
            driver.set_device(self._device)
        except Refused as refused:
            raise kind(start + _words(refused.status)) from None
        ledger.add(runs=1)

    def _capture(self, run_options: Any, addresses: dict[str, Any]) -> None:
        number = self._graph_number(run_options)
        if number is None:
            return
        ledger.change(lambda content: content["gpu_graph_ids"].append(number))
        if not self._graphing or number < 0:
            return
        with self._lock:
            captured = self._captured.setdefault(number, addresses)
        if captured != addresses:
            raise RuntimeError(f"CUDA graph {number} was captured with other addresses")

    def _graph_number(self, run_options: Any) -> int | None:
        try:
            return int(run_options.get_run_config_entry(_GRAPH_KEY))
        except (AttributeError, RuntimeError):
            # Without a number it is the first graph.
            return 0 if self._graphing else None


class InferenceSession(_PublicSession):  # type: ignore[misc]
    """As the real one, for providers that it does not have."""

    _sess: Any

    def __init__(
        self, path_or_bytes: Any, sess_options: Any = None, providers: Any = None, provider_options: Any = None, **named: Any
    ) -> None:
        asked = [(one, {}) if isinstance(one, str) else tuple(one) for one in providers or ()]
        if provider_options is not None:
            asked = [(name, options) for (name, _), options in zip(asked, provider_options, strict=True)]
        gpu = {name: {str(key): str(value) for key, value in options.items()} for name, options in asked if name in (CUDA, TENSORRT)}
        others = [(name, options) for name, options in asked if name not in gpu] or [("CPUExecutionProvider", {})]
        self._gpu: dict[str, dict[str, str]] = {}
        if gpu and not os.environ.get(settings.NO_CUDA_EP):
            ledger.change(lambda content: content["provider_options"].append(gpu))
            try:
                for options in gpu.values():
                    driver.set_device(int(options.get("device_id", "0")))
            except Refused as refused:
                status = INVALID_DEVICE if refused.status == 100 else refused.status
                raise native.Fail("[ONNXRuntimeError] : 1 : FAIL : " + _words(status)) from None
            self._gpu = gpu
        super().__init__(path_or_bytes, sess_options, providers=others, **named)
        if self._gpu:
            self._sess = DeviceSession(self._sess, gpu)

    def get_providers(self) -> list[str]:
        return [*self._gpu, *super().get_providers()]

    def get_provider_options(self) -> dict[str, Any]:
        return {**self._gpu, **super().get_provider_options()}


def _preload_dlls(*arguments: Any, **named: Any) -> None:
    ledger.add(preload_calls=1)


def patch(module: Any) -> None:
    """Have the real module, which has just been imported, use what is here."""
    real = list(native.get_available_providers())

    def get_available_providers() -> list[str]:
        return [TENSORRT, CUDA, *[name for name in real if name not in (TENSORRT, CUDA)]]

    native.OrtValue.ortvalue_from_shape_and_type = staticmethod(_value_from_shape_and_type)
    native.OrtValue.ortvalue_from_numpy = staticmethod(_value_from_numpy_on)
    for place in (module, native, _pybind_state):
        place.get_available_providers = get_available_providers
        place.SessionIOBinding = Binding
    for place in (module, onnxruntime_inference_collection):
        place.InferenceSession = InferenceSession
    module.preload_dlls = _preload_dlls
    module.get_device = lambda: "GPU"
