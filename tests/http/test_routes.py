"""Every endpoint over a real socket, against a service that is a stand-in: routing, bodies, statuses, content types."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from google.protobuf import text_format
from hypercorn.typing import ASGIFramework

from tensorfarm.server.http import front as front_module
from tensorfarm.server.http import inference
from tensorfarm.server.http.exchange import Answer, ArenaBody, Cancel, HttpRequest, Reply
from tensorfarm.server.http.front import Front, infer_target
from tensorfarm.server.http.limits import Limits
from tensorfarm.server.http.listener import HttpDoor
from tensorfarm.server.http.metrics_page import metrics_door
from tensorfarm.server.http.peer import peer_is_local
from tensorfarm.server.log import LogSettings
from tensorfarm.server.repository.lifecycle import IndexEntry
from tensorfarm.server.regions import CudaRegion, RegionRegistry
from tensorfarm.server.statistics import VersionStatistics
from tensorfarm.shm.arena import Arena
from tensorfarm.workers.contract.configuration import parse_text
from tensorfarm.workers.contract.signature import signature_of
from tensorfarm.workers.contract.status import not_found, unavailable
from tests.http.doors import PATIENCE_S, Client, a_client, an_arena, replies_in, run, until
