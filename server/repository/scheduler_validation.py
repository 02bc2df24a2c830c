"""Checks of dynamic and sequence batching."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...workers.contract.configuration import model_config
from ...workers.contract.status import invalid

_QUEUE = model_config.ModelQueuePolicy
_CONTROL = model_config.ModelSequenceBatching.Control
_BOOLEAN_KINDS = (_CONTROL.CONTROL_SEQUENCE_START, _CONTROL.CONTROL_SEQUENCE_END, _CONTROL.CONTROL_SEQUENCE_READY)
_VALUE_FIELDS = ("int32_false_true", "fp32_false_true", "bool_false_true")
_CORRELATION_TYPES = tuple(
    model_config.DataType.Value(name) for name in ("TYPE_UINT64", "TYPE_INT64", "TYPE_UINT32", "TYPE_INT32", "TYPE_STRING")
)


def validate_dynamic_batching(config: Any) -> None:
    """Check preferred batch sizes, priorities and queue policies. Raises StatusError INVALID_ARG."""
    name, batching = config.name, config.dynamic_batching
    _check_preferred(batching.preferred_batch_size, config.max_batch_size, "dynamic batching preferred size", name)
    levels = batching.priority_levels
    if levels:
        if not 1 <= batching.default_priority_level <= levels:
            raise invalid(f"default priority level must be in range [1, {levels}] for {name}")
        if any(not 1 <= level <= levels for level in batching.priority_queue_policy):
            raise invalid(f"priority queue policy must have priority level in range [1, {levels}] for {name}")
    if batching.preserve_ordering:
        if levels > 1:
            raise invalid(f"Only one priority level is allowed when 'preserve_ordering' is true for {name}")
        for policy in (batching.default_queue_policy, *batching.priority_queue_policy.values()):
            if policy.default_timeout_microseconds and policy.timeout_action == _QUEUE.DELAY:
                raise invalid(f"Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for {name}")


def validate_sequence_batching(config: Any) -> None:
    """Check controls and the strategy. Raises StatusError INVALID_ARG."""
    name, batching = config.name, config.sequence_batching
    for kind in _BOOLEAN_KINDS:
        _control(batching, kind, name)
    control = _control(batching, _CONTROL.CONTROL_SEQUENCE_CORRID, name)
    if control is not None:
        if any(getattr(control, field) for field in _VALUE_FIELDS):
            raise invalid(
                "sequence batching must not specify either 'int32_false_true', 'fp32_false_true' or 'bool_false_true' "
                f"for CONTROL_SEQUENCE_CORRID for {name}"
            )
        if control.data_type not in _CORRELATION_TYPES:
            raise invalid(
                f"unexpected data type for control CONTROL_SEQUENCE_CORRID for {name}. "
                "Allowed data types are TYPE_UINT64, TYPE_INT64, TYPE_UINT32, TYPE_INT32 and TYPE_STRING"
            )
    if batching.HasField("oldest"):
        _check_preferred(batching.oldest.preferred_batch_size, config.max_batch_size, "sequence batching preferred batch size", name)
    if batching.HasField("direct") and not 0.0 <= batching.direct.minimum_slot_utilization <= 1.0:
        raise invalid(f"sequence batching minimum slot utilization must be in range (0.0, 1.0] for {name}")


def validate_states(config: Any) -> None:
    """Check the implicit state of a sequence model. Raises StatusError INVALID_ARG."""
    seen = set()
    for state in config.sequence_batching.state:
        name = state.input_name
        if name in seen:
            raise invalid(f"State input name '{name}' specified more than once.")
        seen.add(name)
        if len(state.initial_state) > 1:
            raise invalid(
                f"initial_state field for state input '{name}' must contain exactly one or zero element. "
                f"Found '{len(state.initial_state)}' elements."
            )
        for initial in state.initial_state:
            _check_initial_state(state, initial)
        if state.use_growable_memory and not state.use_same_buffer_for_input_output:
            raise invalid(f"In order to 'use_growable_memory', you must also enable 'use_single_buffer' for state input name '{name}'.")


def _check_initial_state(state: Any, initial: Any) -> None:
    name = state.input_name
    if not initial.name:
        raise invalid(f"Field 'name' must be set when using initial_state for state input '{name}'.")
    if initial.data_type != state.data_type:
        raise invalid(f"The data type used for 'initial_state' field of state '{name}' does not match the state data type.")
    if len(initial.dims) != len(state.dims):
        raise invalid(
            "Number of dimensions in 'initial_state' doesn't match the size of 'state' dimensions for state input "
            f"'{name}'. {len(initial.dims)} != {len(state.dims)}"
        )
    for given, wanted in zip(initial.dims, state.dims, strict=True):
        if given == -1:
            raise invalid(f"'initial_state' field for state input name '{name}' contains variable dimensions.")
        if wanted not in (-1, given):
            raise invalid(f"'initial_state' dim for input name '{name}' doesn't match 'state' dim description. {given} != {wanted}")


def _check_preferred(sizes: Iterable[int], max_batch_size: int, what: str, name: str) -> None:
    for size in sizes:
        if size <= 0:
            raise invalid(f"{what} must be positive for {name}")
        if size > max_batch_size:
            raise invalid(f"{what} must be <= max batch size for {name}")


def _control(batching: Any, kind: int, name: str) -> Any:
    """The control of a kind, None where there is none. Raises StatusError INVALID_ARG where names or kinds repeat."""
    found = None
    seen = set()
    for tensor in batching.control_input:
        if not tensor.name:
            raise invalid(f"sequence batching control tensor must have a name for {name}")
        if tensor.name in seen:
            raise invalid(f"sequence batching control tensor '{tensor.name}' is specified for multiple control kinds for {name}")
        seen.add(tensor.name)
        for control in tensor.control:
            if control.kind != kind:
                continue
            if found is not None:
                raise invalid(f"sequence batching specifies multiple {_CONTROL.Kind.Name(kind)} tensors for {name}")
            found = control
            if kind in _BOOLEAN_KINDS:
                _check_values(control, name)
    return found


def _check_values(control: Any, name: str) -> None:
    kind = _CONTROL.Kind.Name(control.kind)
    given = [field for field in _VALUE_FIELDS if getattr(control, field)]
    if not given:
        raise invalid(
            f"sequence batching must specify either 'int32_false_true', 'fp32_false_true' or 'bool_false_true' for {kind} for {name}"
        )
    if len(given) > 1:
        raise invalid(
            "sequence batching specifies more than one from 'int32_false_true', 'fp32_false_true' and 'bool_false_true' "
            f"for {kind} for {name}"
        )
    if len(getattr(control, given[0])) != 2:
        raise invalid(f"sequence batching control '{given[0]}' must have exactly 2 entries for {kind} for {name}")
