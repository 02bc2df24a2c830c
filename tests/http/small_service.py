"""A service with one model and no processes, for the routes: what they ask of it and nothing more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tensorfarm.server.admission import Admission
from tensorfarm.server.log import LogSettings
from tensorfarm.server.regions import CudaRegion, RegionRegistry
from tensorfarm.server.repository.lifecycle import IndexEntry
from tensorfarm.server.service import Service
from tensorfarm.server.statistics import VersionStatistics
from tensorfarm.workers.contract.configuration import parse_text
from tensorfarm.workers.contract.signature import signature_of
from tensorfarm.workers.contract.status import not_found, unavailable

CONFIG = """
name: "add"
backend: "onnxruntime"
max_batch_size: 8
input [ { name: "A" data_type: TYPE_INT32 dims: [ 4, -1 ] reshape: { shape: [ -1 ] } } ]
output [ { name: "S" data_type: TYPE_STRING dims: [ 1 ] } ]
"""


class SmallVersion:
    """A ready version of the model."""

    def __init__(self, version: int) -> None:
        self.name = "add"
        self.version = version
        self.config = parse_text(CONFIG, "the test")
        self.signature = signature_of(self.config)
        self.platform = "onnxruntime"
        self.statistics = VersionStatistics()


class SmallRegions(RegionRegistry):
    """Regions that claim to have a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.cuda: dict[str, CudaRegion] = {}

    async def register(self, name: str, raw_handle: bytes, device_id: int, byte_size: int) -> None:
        self.cuda[name] = CudaRegion(name, device_id, byte_size, raw_handle)

    def cuda_status(self, name: str | None) -> list[CudaRegion]:
        return [region for region in self.cuda.values() if name in (None, region.name)]

    async def unregister(self, name: str | None) -> None:
        for known in [known for known in self.cuda if name in (None, known)]:
            del self.cuda[known]


class SmallService:
    """Versions 1 and 3 of the model "add" are ready, version 2 is loading, version 4 is ill."""

    def __init__(self, arena: Any) -> None:
        self.arena = arena
        self.admission = Admission()
        self.options = SimpleNamespace(http_max_input_size=1 << 22)
        self.server_id = "small"
        self.version = "2.73.0"
        self.extensions = ("classification", "statistics")
        self.regions = self.cuda_regions = SmallRegions()
        self.log_settings = LogSettings()
        self.live = True
        self.exiting = False
        self.is_ready = True
        self.shm_allowed = True
        self.explicit = True
        self.calls: list[tuple[str, str, object]] = []
        self._versions = {number: SmallVersion(number) for number in (1, 3, 4)}

    def ready(self) -> bool:
        return self.is_ready

    def find(self, name: str, version: str = "") -> Any:
        if name != "add":
            raise not_found(f"Request for unknown model: '{name}' is not found")
        number = int(version or "3")
        if number == 2:
            raise unavailable(f"Request for unknown model: '{name}' version 2 is not at ready state")
        if number not in self._versions:
            raise not_found(f"Request for unknown model: '{name}' version {number} is not found")
        return self._versions[number]

    checks = False

    async def asked_ready(self) -> bool:
        return self.ready()

    async def asked_version_ready(self, name: str, version: str = "") -> bool:
        return self.version_ready(name, version)

    def ready_versions(self, name: str) -> list[int]:
        return [1, 3]

    def version_ready(self, name: str, version: str = "") -> bool:
        return bool(self.find(name, version).version != 4)

    def versions(self) -> list[Any]:
        return [self._versions[1], self._versions[3]]

    async def index(self, ready_only: bool) -> list[IndexEntry]:
        entries = [
            IndexEntry("add", "1", "READY", ""),
            IndexEntry("broken"),
            IndexEntry("bad\udcff", reason="bad\udcff"),
            IndexEntry("add", "2", "UNAVAILABLE", "unloaded"),
        ]
        return entries[:1] if ready_only else entries

    async def load(self, name: str, parameters: dict[str, object]) -> None:
        self._control("load", name, parameters)

    async def unload(self, name: str, dependents: bool) -> None:
        self._control("unload", name, dependents)

    def _control(self, verb: str, name: str, parameters: object) -> None:
        if not self.explicit:
            raise unavailable("explicit model load / unload is not allowed if polling is enabled")
        self.calls.append((verb, name, parameters))

    reported = Service.reported
    check_shm_allowed = Service.check_shm_allowed
    regions_for = Service.regions_for

    def client_shm_allowed(self, peer_is_local: bool) -> bool:
        return self.shm_allowed and peer_is_local
