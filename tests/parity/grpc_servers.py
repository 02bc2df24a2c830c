"""Both servers with their gRPC ports open, and the Python models that they serve to the parity tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc

from .. import oracle as real
from ..ensembles import Step, TestEnsemble, write_ensembles
from ..model_repository import BATCHED_BYTES, CLASSES, PLAIN, VERSIONS_ALL, Flavour, TestTensor, write_repository
from ..servers import Server, free_ports, start_tensorfarm, stopping, wait_until
from .grpc_case import OPTIONS, Pair, Side
from .model_copies import copy_model
from .recorder_script import recorder, write

SERVED = ("answers", "asked", "faults", "repeater", "senders", "streams", "typed")
LATER = {"off": "asked", "never": "asked"}
"""Copies: ``off`` is loaded and unloaded by tests, ``never`` is not loaded at all."""

NUMBER = 'control_input { name: "CORRID" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_INT32 } }'
RECORDERS = {
    "held": recorder("", 0),
    "queued": recorder("dynamic_batching { default_queue_policy { max_queue_size: 100 } }"),
    "sequences": recorder("sequence_batching { direct {} max_sequence_idle_microseconds: 60000000 }", 1),
    "numbered": recorder(f"sequence_batching {{ direct {{}} {NUMBER} }}", 1),
}
ENSEMBLES = (
    TestEnsemble(
        "over_plain",
        (Step("plain", {"INPUT0": "A", "INPUT1": "B"}, {"OUTPUT0": "SUM"}),),
        tuple(TestTensor(name, "INT32", (16,)) for name in "AB"),
        (TestTensor("SUM", "INT32", (16,)),),
    ),
    TestEnsemble(
        "over_answers",
        (Step("answers", {"VERB": "VERB"}, {"SAID": "SAID"}),),
        (TestTensor("VERB", "BYTES", (1,)),),
        (TestTensor("SAID", "BYTES", (-1,)),),
    ),
    TestEnsemble(
        "over_faults",
        (Step("faults", {"VERB": "VERB"}, {"SAID": "SAID"}),),
        (TestTensor("VERB", "BYTES", (1,)),),
        (TestTensor("SAID", "BYTES", (-1,)),),
    ),
    TestEnsemble(
        "over_streams",
        (Step("streams", {"VERB": "VERB"}, {"SAID": "SAID"}),),
        (TestTensor("VERB", "BYTES", (1,)),),
        (TestTensor("SAID", "BYTES", (-1,)),),
    ),
    TestEnsemble(
        "over_asked",
        (Step("asked", {"FIRST": "FIRST"}, {"SAID": "SAID", "PARAMETERS": "PARAMETERS"}),),
        (TestTensor("FIRST", "INT32", (-1,)),),
        (TestTensor("SAID", "BYTES", (1,)), TestTensor("PARAMETERS", "BYTES", (1,))),
    ),
)
WRITTEN = (PLAIN, CLASSES, BATCHED_BYTES, VERSIONS_ALL)
LOADED = (*SERVED, "off", *(model.name for model in WRITTEN), *RECORDERS, *(ensemble.name for ensemble in ENSEMBLES))


def prepare_models(home: Path) -> None:
    """Write all of them for one server."""
    models = home / "models"
    for name in SERVED:
        copy_model(name, models / name)
    for name, source in LATER.items():
        copy_model(source, models / name)
    write_repository(models, WRITTEN, Flavour.PYTHON)
    (home / "notes").mkdir()
    write(models, home / "notes", RECORDERS)
    write_ensembles(models, ENSEMBLES)
    copy_model("faults", models / "broken")
    (models / "broken" / "1" / "model.py").write_text("import no_such_module\n")


Started = Sequence[tuple[Server, int, Path]]
"""The real server and tensorfarm, each with its gRPC port and its folder."""


@contextlib.contextmanager
def grpc_pair(root: Path, *flags: str, prepare: Callable[[Path], None]) -> Iterator[Started]:
    """Both servers, each with a gRPC port and a folder of its own, which ``prepare`` fills with models."""
    real.require()
    homes = (root / "theirs", root / "ours")
    for home in homes:
        home.mkdir(parents=True)
        prepare(home)
    ports = free_ports(2)
    flags = ("--disable-auto-complete-config", *flags)
    own = ("--allow-grpc=true", "--grpc-address=127.0.0.1", f"--grpc-port={ports[1]}")
    started = [
        real.start(homes[0] / "models", *flags, folder=homes[0] / "run", environment={"GRPC_PORT": str(ports[0])}),
        start_tensorfarm(homes[1] / "models", *flags, *own, folder=homes[1] / "run", wait=False),
    ]
    started[0].restarts = 3  # it dies of streams now and then, see grpc_stream.surviving
    with stopping(*started) as servers:
        for server in servers:
            wait_until(server.ready, f"the models to be ready\n{server.log}", 60.0, 0.05)
        yield tuple(zip(servers, ports, homes, strict=True))


@contextlib.contextmanager
def connected(started: Started) -> Iterator[Pair]:
    """Channels to both."""
    with contextlib.ExitStack() as stack:
        sides = []
        for at, (server, port, home) in enumerate(started):
            channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS))
            grpc.channel_ready_future(channel).result(20)
            sides.append(Side(server, port, home, bool(at), channel))
        yield Pair(*sides)
