"""Implicit state: reading a configuration's states, and what is kept between the requests of a sequence. The texts are those of release 24.10."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tensorfarm.workers.contract.messages import RequestBody, RequestContext
from tensorfarm.workers.contract.status import Code, StatusError
from tensorfarm.workers.states import END, START, States, StateSpec, states_of


def state(initial: Any = (), **more: Any) -> dict[str, Any]:
    made = {"input_name": "SI", "output_name": "SO", "data_type": "TYPE_INT32", "dims": [2], "initial_state": initial}
    return made | more


def start(**more: Any) -> dict[str, Any]:
    """An initial state as the document has it: its dims are strings there."""
    return {"name": "zero", "data_type": "TYPE_INT32", "dims": ["2"]} | more


def config(*states: dict[str, Any], max_batch_size: int = 4, **more: Any) -> dict[str, Any]:
    return {"name": "m", "max_batch_size": max_batch_size, "sequence_batching": {"state": list(states)}, **more}


def file(folder: Path, content: bytes, name: str = "init") -> str:
    (folder / "initial_state").mkdir(exist_ok=True)
    (folder / "initial_state" / name).write_bytes(content)
    return name


def body(slot: int = 0, flags: int = 0) -> RequestBody:
    return RequestBody("", 1, [], [], {}, RequestContext(1, flags, slot=slot))


def found(states: States, request: RequestBody) -> list[Any]:
    return [array.tolist() for _, array in states.inputs(request)]


ZERO = [start(zero_data=True)]

FAULTS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "two initial": (
        [state(ZERO * 2)],
        "initial_state field for state input 'SI' must contain exactly one or zero element. Found '2' elements.",
    ),
    "datatype": (
        [state([start(data_type="TYPE_FP32", zero_data=True)])],
        "The data type used for 'initial_state' field of state 'SI' does not match the state data type.",
    ),
    "no name": (
        [state([start(name="", zero_data=True)])],
        "Field 'name' must be set when using initial_state for state input 'SI'.",
    ),
    "twice": ([state(ZERO), state(ZERO, output_name="T")], "State input name 'SI' specified more than once."),
    "rank": (
        [state([start(dims=["1", "1"], zero_data=True)])],
        "Number of dimensions in 'initial_state' doesn't match the size of 'state' dimensions for state input 'SI'. 2 != 1",
    ),
    "variable": (
        [state([start(dims=["-1"], zero_data=True)], dims=[-1])],
        "'initial_state' field for state input name 'SI' contains variable dimensions.",
    ),
    "dim": (
        [state([start(dims=["3"], zero_data=True)])],
        "'initial_state' dim for input name 'SI' doesn't match 'state' dim description. 3 != 2",
    ),
    "no data": ([state([start()])], "initial_state setting expects state'SI' to have state_data set"),
    "short file": (
        [state([start(data_file="short")])],
        "initial_state setting expects 8 bytes, but the data provided from shortonly has 7 bytes.",
    ),
    "few strings": (
        [state([start(data_type="TYPE_STRING", data_file="strings")], data_type="TYPE_STRING")],
        "expected 2 strings for inference input 'SI', got 1",
    ),
    "cut string": (
        [state([start(data_type="TYPE_STRING", data_file="short")], data_type="TYPE_STRING")],
        "the initial value of state input 'SI' is cut off in its last string",
    ),
    "growable": (
        [state(use_growable_memory=True)],
        "In order to 'use_growable_memory', you must also enable 'use_single_buffer' for state input name 'SI'.",
    ),
    "growable on the CPU": (
        [state(use_growable_memory=True, use_same_buffer_for_input_output=True)],
        "'use_growable_memory' can only work with KIND_GPU model instances right now. Please either change the instance type to "
        "KIND_GPU or set 'use_growable_memory' to false for state input 'SI'",
    ),
    "no datatype": ([state(data_type="TYPE_INVALID")], "sequence batching state 'SI' must specify 'input_name' and 'data_type'"),
    "no input": ([state(input_name="")], "sequence batching state '' must specify 'input_name' and 'data_type'"),
    "zero byte": ([state([start(data_file="a\0b")])], "data_file 'a\0b' leaves the folder 'initial_state' of model 'm'"),
    "outside": ([state([start(data_file="../secret")])], "data_file '../secret' leaves the folder 'initial_state' of model 'm'"),
    "no file": ([state([start(data_file="pipe")])], "data_file 'pipe' of model 'm' is not a regular file"),
}


@pytest.mark.parametrize("case", FAULTS.values(), ids=FAULTS)
def test_what_is_refused(tmp_path: Path, case: tuple[list[dict[str, Any]], str]) -> None:
    states, message = case
    file(tmp_path, bytes([9, 0, 0, 0, 0, 0, 0]), "short")
    file(tmp_path, b"\1\0\0\0a", "strings")
    (tmp_path / "secret").write_bytes(bytes(8))
    os.mkfifo(tmp_path / "initial_state" / "pipe")
    with pytest.raises(StatusError) as caught:
        states_of(config(*states, instance_group=[{"kind": "KIND_CPU"}]), str(tmp_path))
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARG, message)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StatusError) as caught:
        states_of(config(state([start(data_file="none")])), str(tmp_path))
    assert caught.value.code is Code.INTERNAL
    assert caught.value.message == "failed to open text file for read m/initial_state/none: No such file or directory"


def test_of_a_large_file_no_more_is_read_than_is_used(tmp_path: Path) -> None:
    file(tmp_path, np.array([7, 8], np.int32).tobytes())
    os.truncate(tmp_path / "initial_state" / "init", 1 << 40)
    (array,) = first(tmp_path, state([start(data_file="init")]))
    assert array.tolist() == [[7, 8]]


def test_a_model_without_states(tmp_path: Path) -> None:
    assert states_of({"name": "m", "max_batch_size": 4}, str(tmp_path)) == []
    assert states_of(config(), str(tmp_path)) == []


def first(folder: Path, *states: dict[str, Any], max_batch_size: int = 4) -> list[Any]:
    """What the first request of a sequence gets."""
    specs = states_of(config(*states, max_batch_size=max_batch_size), str(folder))
    arrays = [array for _, array in States(specs, max_batch_size > 0).inputs(body(flags=START))]
    assert all(not array.flags.writeable for array in arrays)
    return arrays


@pytest.mark.parametrize(("max_batch_size", "shape"), [(4, (1, 2)), (0, (2,))])
def test_initial_values(tmp_path: Path, max_batch_size: int, shape: tuple[int, ...]) -> None:
    file(tmp_path, np.array([7, 8, 9], np.int32).tobytes())
    file(tmp_path, b"\2\0\0\0ab\0\0\0\0", "strings")
    states = [
        state(),
        state(ZERO, input_name="A", output_name="a"),
        state([start(zero_data=False)], input_name="B", output_name="b"),
        state([start(data_file="init")], input_name="C", output_name="c"),
        state(input_name="D", output_name="d", data_type="TYPE_STRING"),
        state([start(data_type="TYPE_STRING", data_file="strings")], input_name="E", output_name="e", data_type="TYPE_STRING"),
        state(input_name="F", output_name="f", data_type="TYPE_BF16"),
    ]
    arrays = first(tmp_path, *states, max_batch_size=max_batch_size)
    assert all(array.shape == shape for array in arrays)
    assert [array.ravel().tolist() for array in arrays] == [[0, 0], [0, 0], [0, 0], [7, 8], [b"", b""], [b"ab", b""], [0, 0]]
    assert [array.dtype for array in arrays] == ["int32"] * 4 + ["object"] * 2 + ["uint16"]


def test_variable_dims_are_one_at_first(tmp_path: Path) -> None:
    file(tmp_path, np.arange(6, dtype=np.int32).tobytes())
    longer = state([start(dims=["3", "2"], data_file="init")], dims=[-1, 2])
    (array,) = first(tmp_path, longer)
    assert array.tolist() == [[[0, 1]]]


def test_of_states_with_the_same_tensor_the_first_counts(tmp_path: Path) -> None:
    doubled = [state(), state(output_name="other"), state(input_name="OTHER")]
    (spec,) = states_of(config(*doubled), str(tmp_path))
    assert (spec.input_name, spec.output_name, spec.datatype, spec.dims) == ("SI", "SO", "INT32", (2,))


def sums(same_buffer: bool = False, datatype: str = "INT32") -> States:
    return States([StateSpec("SI", "SO", datatype, (-1,), np.array([[5]], np.int32), same_buffer)], True)


@pytest.mark.parametrize("same_buffer", [False, True])
def test_state_is_carried_within_a_place(same_buffer: bool) -> None:
    states = sums(same_buffer)
    assert states.outputs == {"SO"}
    array = np.array([[6]], np.int32)
    for slot, value in ((0, 6), (1, 7)):
        assert found(states, body(slot, START)) == [[[5]]]
        array[0, 0] = value
        states.keep(body(slot, START), "SO", array)
    array[0, 0] = 99
    assert found(states, body(0)) == [[[6]]] and found(states, body(1)) == [[[7]]]
    states.keep(body(0), "SO", np.array([[1, 2]], np.int32))
    assert found(states, body(0)) == [[[1, 2]]] and found(states, body(2)) == [[[5]]]
    # Another sequence begins in the place.
    assert found(states, body(0, START)) == [[[5]]] and found(states, body(0)) == [[[5]]]


def test_state_goes_with_the_end_of_its_sequence() -> None:
    states = sums()
    states.keep(body(0), "SO", np.array([[6]], np.int32))
    states.ended(body(0))
    assert found(states, body(0)) == [[[6]]]
    states.ended(body(0, END))
    assert found(states, body(0)) == [[[5]]]


def test_one_buffer_is_written_over_where_the_size_fits() -> None:
    states = sums(same_buffer=True)
    states.keep(body(), "SO", np.array([[1, 2]], np.int32))
    ((_, before),) = states.inputs(body())
    states.keep(body(), "SO", np.array([[3], [4]], np.int32))
    ((_, after),) = states.inputs(body())
    assert np.shares_memory(before, after) and after.tolist() == [[3], [4]]
    states.keep(body(), "SO", np.array([[5]], np.int32))
    assert found(states, body()) == [[[5]]] and before.ravel().tolist() == [3, 4]


@pytest.mark.parametrize("request_body", [body(-1), RequestBody("", 1, [], [], {})], ids=["an empty place", "a warm-up sample"])
def test_what_has_no_place_keeps_nothing(request_body: RequestBody) -> None:
    states = sums()
    states.keep(request_body, "SO", np.array([[6]], np.int32))
    assert found(states, request_body) == [[[5]]]
    states.ended(request_body)


def test_strings_are_kept_as_bytes() -> None:
    states = States([StateSpec("SI", "SO", "BYTES", (2,))], True)
    assert found(states, body()) == [[[b"", b""]]]
    states.keep(body(), "SO", np.array([["a", b"\xff"]], np.object_))
    assert found(states, body()) == [[[b"a", b"\xff"]]]


def test_only_states_are_kept() -> None:
    with pytest.raises(StatusError) as caught:
        sums().keep(body(), "OTHER", np.zeros((1, 1), np.int32))
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARG, "state 'OTHER' is not a valid state name.")
