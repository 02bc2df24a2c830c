"""Checks of an ensemble that need only its own configuration: are its tensors connected?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...workers.contract.status import invalid


@dataclass(slots=True, eq=False)
class _Node:
    """A tensor of the ensemble: the tensors it is made from, and those made from it."""

    name: str
    written: bool = False
    ready: bool = False
    sources: list[_Node] = field(default_factory=list)
    targets: list[_Node] = field(default_factory=list)


def validate_ensemble(config: Any) -> None:
    """Check an ensemble's steps and the flow of its tensors. Raises StatusError INVALID_ARG."""
    name = config.name
    if config.platform != "ensemble":
        raise invalid(f"ensemble scheduling cannot be set for model '{name}' whose platform is not ensemble")
    if config.instance_group:
        raise invalid(f"instance group should not be specified for ensemble '{name}'")
    if config.HasField("optimization"):
        raise invalid(f"optimization should not be specified for ensemble '{name}'")
    if config.model_warmup:
        raise invalid(f"model_warmup can not be specified for ensemble '{name}'")
    if not config.ensemble_scheduling.step:
        raise invalid(f"must specify 'step' for ensemble '{name}'")
    graph = _graph(config)
    _flow(config, graph)
    outputs = set()
    for output in config.output:
        node = graph.get(output.name)
        # The lone quote in these two texts is the protocol's.
        if node is None:
            raise invalid(f"ensemble output '{output.name}' for ensemble {name}' is not used")
        if not node.ready:
            loose = _loose_end(node)
            reason = "" if loose is None else f": at least one of its depending tensors, '{loose.name}', is not connected"
            raise invalid(f"output '{output.name}' for ensemble '{name}' is not written{reason}")
        outputs.add(output.name)
    # One that nothing writes is the cause where there are several.
    for tensor, node in sorted(graph.items(), key=lambda item: (item[1].written, item[0])):
        if tensor not in outputs and not (node.ready and node.targets):
            raise invalid(f"ensemble tensor '{tensor}' is unused in ensemble '{name}'")


def _graph(config: Any) -> dict[str, _Node]:
    graph: dict[str, _Node] = {}
    for number, step in enumerate(config.ensemble_scheduling.step):
        for member in ("model_name", "input_map", "output_map"):
            if not getattr(step, member):
                raise invalid(f"must specify '{member}' in step {number} of ensemble '{config.name}'")
        written = []
        for _, tensor in sorted(step.output_map.items()):
            node = graph.setdefault(tensor, _Node(tensor))
            if node.written:
                raise invalid(
                    f"ensemble tensor '{tensor}' can appear in an output map only once for ensemble '{config.name}' step {number}"
                )
            node.written = True
            written.append(node)
        for _, tensor in sorted(step.input_map.items()):
            node = graph.setdefault(tensor, _Node(tensor))
            node.targets += written
            for target in written:
                target.sources.append(node)
    return graph


def _flow(config: Any, graph: dict[str, _Node]) -> None:
    """Mark every tensor that the ensemble's inputs lead to."""
    queue = []
    for tensor in config.input:
        node = graph.get(tensor.name)
        if node is None:
            raise invalid(f"ensemble input '{tensor.name}' for ensemble {config.name}' is not used")
        node.ready = True
        queue.append(node)
    while queue:
        for node in queue.pop().targets:
            if not node.ready and all(source.ready for source in node.sources):
                node.ready = True
                queue.append(node)


def _loose_end(node: _Node) -> _Node | None:
    """A tensor that this one depends on and that nothing writes; None where there is none but a circle."""
    seen = {id(node)}
    stack = node.sources[::-1]
    while stack:
        source = stack.pop()
        if source.ready or id(source) in seen:
            continue
        seen.add(id(source))
        if not source.sources:
            return source
        stack += source.sources[::-1]
    return None
