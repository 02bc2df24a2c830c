from __future__ import annotations

import pytest

from tensorfarm.server.repository.scheduler_validation import (
    validate_dynamic_batching,
    validate_sequence_batching,
    validate_states,
)
from tensorfarm.workers.contract.configuration import parse_text
from tensorfarm.workers.contract.status import Code, StatusError


def check(text: str) -> None:
    config = parse_text(f'name: "m" max_batch_size: 4 {text}', "x")
    validate_dynamic_batching(config)
    validate_sequence_batching(config)
    validate_states(config)


def dynamic(text: str) -> str:
    return f"dynamic_batching {{ {text} }}"


def sequence(text: str) -> str:
    return f"sequence_batching {{ {text} }}"


def control(kind: str, values: str, name: str = "c") -> str:
    return f"control_input {{ name: '{name}' control {{ kind: CONTROL_SEQUENCE_{kind} {values} }} }}"


def state(text: str) -> str:
    return sequence(f"state {{ input_name: 'i' output_name: 'o' data_type: TYPE_FP32 {text} }}")


PAIR = "int32_false_true: [0, 1]"
DELAY = "{ timeout_action: DELAY default_timeout_microseconds: 5 }"
PRESERVE = "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for m"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (dynamic("preferred_batch_size: -1"), "dynamic batching preferred size must be positive for m"),
        (dynamic("preferred_batch_size: 0"), "dynamic batching preferred size must be positive for m"),
        (dynamic("preferred_batch_size: [4, 5]"), "dynamic batching preferred size must be <= max batch size for m"),
        (dynamic("priority_levels: 2"), "default priority level must be in range [1, 2] for m"),
        (dynamic("priority_levels: 2 default_priority_level: 3"), "default priority level must be in range [1, 2] for m"),
        (
            dynamic("priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 3 value {} }"),
            "priority queue policy must have priority level in range [1, 2] for m",
        ),
        (
            dynamic("priority_levels: 2 default_priority_level: 1 preserve_ordering: true"),
            "Only one priority level is allowed when 'preserve_ordering' is true for m",
        ),
        (dynamic(f"preserve_ordering: true default_queue_policy {DELAY}"), PRESERVE),
        (
            dynamic(
                f"preserve_ordering: true priority_levels: 1 default_priority_level: 1 priority_queue_policy {{ key: 1 value {DELAY} }}"
            ),
            PRESERVE,
        ),
        (
            sequence(control("CORRID", "data_type: TYPE_FP32")),
            "unexpected data type for control CONTROL_SEQUENCE_CORRID for m. "
            "Allowed data types are TYPE_UINT64, TYPE_INT64, TYPE_UINT32, TYPE_INT32 and TYPE_STRING",
        ),
        (
            sequence(control("CORRID", "")),
            "unexpected data type for control CONTROL_SEQUENCE_CORRID for m. "
            "Allowed data types are TYPE_UINT64, TYPE_INT64, TYPE_UINT32, TYPE_INT32 and TYPE_STRING",
        ),
        (
            sequence(control("CORRID", f"data_type: TYPE_UINT64 {PAIR}")),
            "sequence batching must not specify either 'int32_false_true', 'fp32_false_true' or 'bool_false_true' "
            "for CONTROL_SEQUENCE_CORRID for m",
        ),
        (
            sequence(control("CORRID", "data_type: TYPE_UINT64") + control("CORRID", "data_type: TYPE_UINT64", "d")),
            "sequence batching specifies multiple CONTROL_SEQUENCE_CORRID tensors for m",
        ),
        (sequence(control("START", PAIR, "")), "sequence batching control tensor must have a name for m"),
        (
            sequence(control("START", PAIR) + control("END", PAIR)),
            "sequence batching control tensor 'c' is specified for multiple control kinds for m",
        ),
        (
            sequence(control("START", PAIR) + control("START", PAIR, "d")),
            "sequence batching specifies multiple CONTROL_SEQUENCE_START tensors for m",
        ),
        (
            sequence(control("START", "")),
            "sequence batching must specify either 'int32_false_true', 'fp32_false_true' or 'bool_false_true' "
            "for CONTROL_SEQUENCE_START for m",
        ),
        (
            sequence(control("END", f"{PAIR} fp32_false_true: [0, 1]")),
            "sequence batching specifies more than one from 'int32_false_true', 'fp32_false_true' and 'bool_false_true' "
            "for CONTROL_SEQUENCE_END for m",
        ),
        (
            sequence(control("READY", "int32_false_true: [0]")),
            "sequence batching control 'int32_false_true' must have exactly 2 entries for CONTROL_SEQUENCE_READY for m",
        ),
        (
            sequence(control("READY", "fp32_false_true: [0, 1, 2]")),
            "sequence batching control 'fp32_false_true' must have exactly 2 entries for CONTROL_SEQUENCE_READY for m",
        ),
        (
            sequence(control("READY", "bool_false_true: true")),
            "sequence batching control 'bool_false_true' must have exactly 2 entries for CONTROL_SEQUENCE_READY for m",
        ),
        (sequence("oldest { preferred_batch_size: -1 }"), "sequence batching preferred batch size must be positive for m"),
        (sequence("oldest { preferred_batch_size: 9 }"), "sequence batching preferred batch size must be <= max batch size for m"),
        (
            sequence("direct { minimum_slot_utilization: 1.5 }"),
            "sequence batching minimum slot utilization must be in range (0.0, 1.0] for m",
        ),
        (
            sequence("direct { minimum_slot_utilization: -0.5 }"),
            "sequence batching minimum slot utilization must be in range (0.0, 1.0] for m",
        ),
        (
            sequence("state { input_name: 'i' } state { input_name: 'i' }"),
            "State input name 'i' specified more than once.",
        ),
        (state("initial_state {}"), "Field 'name' must be set when using initial_state for state input 'i'."),
        (
            state("initial_state {} initial_state {}"),
            "initial_state field for state input 'i' must contain exactly one or zero element. Found '2' elements.",
        ),
        (
            state("initial_state { name: 'n' data_type: TYPE_INT32 }"),
            "The data type used for 'initial_state' field of state 'i' does not match the state data type.",
        ),
        (
            state("dims: [1, 2] initial_state { name: 'n' data_type: TYPE_FP32 dims: 1 }"),
            "Number of dimensions in 'initial_state' doesn't match the size of 'state' dimensions for state input 'i'. 1 != 2",
        ),
        (
            state("dims: -1 initial_state { name: 'n' data_type: TYPE_FP32 dims: -1 }"),
            "'initial_state' field for state input name 'i' contains variable dimensions.",
        ),
        (
            state("dims: 2 initial_state { name: 'n' data_type: TYPE_FP32 dims: 3 }"),
            "'initial_state' dim for input name 'i' doesn't match 'state' dim description. 3 != 2",
        ),
        (
            state("use_growable_memory: true"),
            "In order to 'use_growable_memory', you must also enable 'use_single_buffer' for state input name 'i'.",
        ),
    ],
)
def test_messages(text: str, message: str) -> None:
    with pytest.raises(StatusError) as caught:
        check(text)
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARG, message)


@pytest.mark.parametrize(
    "text",
    [
        "",
        dynamic("preferred_batch_size: [1, 4] priority_levels: 2 default_priority_level: 2"),
        dynamic("preserve_ordering: true default_queue_policy { timeout_action: DELAY }"),
        dynamic(f"priority_queue_policy {{ key: 1 value {DELAY} }}"),
        sequence("direct { minimum_slot_utilization: 0 }"),
        sequence("direct { minimum_slot_utilization: 1 }"),
        sequence("control_input { name: 'x' }"),
        sequence(f"control_input {{ name: 'c' control {{ {PAIR} }} control {{ kind: CONTROL_SEQUENCE_END {PAIR} }} }}"),
        sequence(control("CORRID", "data_type: TYPE_STRING") + control("READY", "bool_false_true: [false, true]", "d")),
        sequence("state {}"),
        state("dims: [-1, 2] initial_state { name: 'n' data_type: TYPE_FP32 dims: [1, 2] zero_data: true }"),
    ],
)
def test_what_is_accepted(text: str) -> None:
    check(text)
