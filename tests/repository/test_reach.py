"""Which GPU's memory the workers of a version reach, and how a version with requests on their way ends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tensorfarm.server.dispatch.carried import Location
from tensorfarm.server.dispatch.instance import Instance
from tensorfarm.server.repository.version import Home, ModelVersion
from tensorfarm.workers.contract.configuration import parse_text
from tensorfarm.workers.contract.messages import InstanceSpec, Load

from ..dispatch.carried_bench import FAR, Bench, small, wanted


def version(backend: str, *homes: tuple[str, str, int], parameter: str = "") -> ModelVersion:
    """One with an instance in each of ``homes``: worker, kind, device."""
    value = f'parameters {{ key: "FORCE_CPU_ONLY_INPUT_TENSORS" value {{ string_value: "{parameter}" }} }}' if parameter else ""
    unused: Any = None
    scheduler: Any = SimpleNamespace(in_flight=0, idle=True, stopping=False)
    return ModelVersion(
        name="m",
        version=1,
        number=1,
        files=unused,
        config=parse_text(f'name: "m" {value}', ""),
        signature=unused,
        statistics=unused,
        scheduler=scheduler,
        enter=unused,
        withdraw=unused,
        homes={
            Instance(number, "m"): Home(worker, InstanceSpec(number, "m", kind, device))
            for number, (worker, kind, device) in enumerate(homes)
        },
        load=Load(0, 1, "m", backend, "", 1, b"", {}, []),
    )


@pytest.mark.parametrize(
    ("served", "device"),
    [
        (version("onnxruntime"), None),
        (version("onnxruntime", ("cpu", "KIND_CPU", 0)), None),
        (version("onnxruntime", ("gpu1", "KIND_GPU", 1), ("gpu1", "KIND_GPU", 1)), 1),
        (version("onnxruntime", ("gpu0", "KIND_GPU", 0), ("gpu1", "KIND_GPU", 1)), None),
        (version("onnxruntime", ("gpu0", "KIND_GPU", 0), ("cpu", "KIND_CPU", 0)), None),
        (version("python", ("m:1#0", "KIND_GPU", 1)), None),
        (version("python", ("m:1#0", "KIND_GPU", 1), parameter="yes"), None),
        (version("python", ("m:1#0", "KIND_GPU", 1), ("m:1#1", "KIND_GPU", 1), parameter="no"), 1),
        (version("python", ("m:1#0", "KIND_CPU", 1), parameter="no"), None),
    ],
)
def test_the_one_gpu_of_a_version(served: ModelVersion, device: int | None) -> None:
    assert [served.takes(Location(number)) for number in range(3)] == [device == number for number in range(3)]


def test_what_lies_with_a_worker_only_that_worker_reaches() -> None:
    served = version("onnxruntime", ("gpu1", "KIND_GPU", 1), ("gpu1", "KIND_GPU", 1))
    assert served.takes(Location(1, "gpu1")) and not served.takes(Location(1, "m:1@gpu1"))
    two = version("python", ("m:1#0", "KIND_GPU", 1), ("m:1#1", "KIND_GPU", 1), parameter="no")
    assert two.takes(Location(1)) and not two.takes(Location(1, "m:1#0"))


def test_what_a_version_takes_follows_its_instances() -> None:
    served = version("onnxruntime", ("gpu1", "KIND_GPU", 1))
    takes = served.takes
    assert takes(Location(1))
    served.homes[Instance(9, "m")] = Home("cpu", InstanceSpec(9, "m", "KIND_CPU", 0))
    assert not takes(Location(1))


def test_a_version_counts_what_is_carried_and_stops_after_it() -> None:
    bench = Bench()
    served = version("onnxruntime")
    served.carried = bench.carried
    assert (served.idle, served.in_flight) == (True, 0)
    bench.submit(small(), outputs=(wanted(FAR),))
    assert (served.idle, served.in_flight) == (False, 0)  # what lies behind counts it
    bench.answer(bench.output())
    assert served.in_flight == 1
    bench.mover.finish_put()
    from_far = wanted(FAR).span
    assert from_far is not None and served.idle
    bench.submit(from_far)
    assert served.in_flight == 1
    served.stop()
    assert (served.stopping, served.scheduler.stopping) == (True, False)
    bench.mover.finish_fetch()
    assert (served.stopping, served.scheduler.stopping) == (True, True)
    bench.answer()
    assert served.idle
    bench.check_empty()
