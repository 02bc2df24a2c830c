"""Workers of Python models: fresh ones after an inspection, checks, shared arenas, and requests that nobody waits for any more."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tensorfarm.server.farm import farm as farm_module
from tensorfarm.server.farm.interpreter import OWN, Interpreter
from tensorfarm.shm.placement import Lease
from tensorfarm.workers.contract.messages import Answer, Call, Cancel, Inspect, Release, Result, Say
from tensorfarm.workers.contract.status import Code, StatusError

from .harness import CONFIG, PATIENCE_S, WIDTH, House, Served, run

SEAT = "m:1#0"
LATE = CONFIG.replace("dynamic_batching { }", "")

ADDING = """
import os
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    {more}

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        first, second = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("IN0", "IN1"))
        return pb_utils.InferenceResponse([pb_utils.Tensor("SUM", first + second), pb_utils.Tensor("DIFFERENCE", first - second)])
"""

WAITING = """
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        pb_utils.Logger.log_info("running")
        for request in requests:
            end = time.monotonic() + 10
            while not request.is_cancelled() and time.monotonic() < end:
                time.sleep(0.001)
            pb_utils.Logger.log_info(f"cancelled: {request.is_cancelled()}")
        return [pb_utils.InferenceResponse() for _ in requests]
"""

CALLING = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        call = pb_utils.InferenceRequest(model_name="other", requested_output_names=[], inputs=requests[0].inputs())
        response = call.exec()
        try:
            return [pb_utils.InferenceResponse([pb_utils.Tensor("SUM", tensor.as_numpy() + 1) for tensor in response.output_tensors()])]
        finally:
            del response
"""


def python_model(house: House, code: str, config: str = CONFIG) -> Served:
    served = house.model(config)
    Path(served.load.directory, "1", "model.py").write_text(code)
    served.load = msgspec.structs.replace(served.load, backend="python")
    return served


async def load(house: House, served: Served, seat: str = SEAT) -> bool:
    return await asyncio.wait_for(house.farm.load(seat, served.load), PATIENCE_S)


@pytest.mark.parametrize("completing", [True, False])
def test_a_worker_in_which_a_model_has_completed_its_configuration_ends(tmp_path: Path, completing: bool) -> None:
    async def work(house: House) -> None:
        more = "@staticmethod\n    def auto_complete_config(config):\n        config.set_max_batch_size(8)\n        return config"
        served = python_model(house, ADDING.replace("{more}", more if completing else "x = 1"))
        wanted = Inspect(0, "python", served.load.directory, 1, served.load.config, {}, True)
        inspecting = asyncio.ensure_future(house.farm.inspect(SEAT, wanted))
        await house.until(lambda: SEAT in house.farm.seats and house.farm.seats[SEAT].process, "a worker")
        first = house.process(SEAT)
        answer = await asyncio.wait_for(inspecting, PATIENCE_S)
        assert answer.spent is completing
        if completing:
            assert SEAT not in house.farm.seats
            await house.until(lambda: first.arena.number in house.gone, "the spent worker to end")
            assert house.log == [], "it did not die: it was told to go"
        await load(house, served)
        assert (house.process(SEAT) is first) is not completing
        await house.check(served)

    run(tmp_path, work)


def test_an_inspection_that_kills_its_worker(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        served = python_model(house, "import os\nos._exit(7)")
        with pytest.raises(StatusError) as raised:
            await asyncio.wait_for(
                house.farm.inspect(SEAT, Inspect(0, "python", served.load.directory, 1, served.load.config, {}, True)), PATIENCE_S
            )
        assert raised.value.code is Code.UNAVAILABLE and "exited with code 7 while it loaded this model" in raised.value.message

    run(tmp_path, work)


def test_readiness_checks(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        flag = tmp_path / "ready"
        check = (
            f"def is_ready(self):\n        return os.path.exists({str(flag)!r}) or (1 / 0 if os.path.exists('{tmp_path}/bad') else False)"
        )
        served = python_model(house, ADDING.replace("{more}", check))
        assert await load(house, served) is True
        number = served.load.model
        assert await house.farm.check(SEAT, number) is False
        flag.touch()
        assert await house.farm.check(SEAT, number) is True
        assert await house.farm.check(SEAT, number + 1) is False, "a model that it does not hold"
        flag.unlink()
        (tmp_path / "bad").touch()
        with pytest.raises(StatusError, match="ZeroDivisionError"):
            await house.farm.check(SEAT, number)
        asked = asyncio.ensure_future(house.farm.check(SEAT, number))
        os.kill(house.process(SEAT).pid, 19)
        await asyncio.sleep(0)
        house.process(SEAT).kill()
        with pytest.raises(StatusError):
            await asyncio.wait_for(asked, PATIENCE_S)
        with pytest.raises(StatusError, match="is not running"):
            await house.farm.check("nobody:1#0", number)
        plain = python_model(house, ADDING.replace("{more}", "x = 1"))
        assert await load(house, plain, "plain:1#0") is False

    run(tmp_path, work)


def test_a_request_that_nobody_waits_for_any_more(tmp_path: Path) -> None:
    """Whether it runs, or still waits in the worker behind one that does."""

    async def work(house: House) -> None:
        house.dispatcher._recall = lambda batch, index: house.farm.tell(batch, Cancel(batch.number, index))
        served = python_model(house, WAITING, LATE)
        await load(house, served)
        asked = [house.ask(served, width=1) for _ in range(2)]
        await house.until(lambda: Say in map(type, house.said), "the first to run")
        first, second = served.instances[0].batches
        house.dispatcher.cancel(served.scheduler, second.requests[0])
        house.dispatcher.cancel(served.scheduler, first.requests[0])
        for response in await asyncio.wait_for(asyncio.gather(*asked), PATIENCE_S):
            response.release()
        await house.until(lambda: len(house.said) == 4, "the model's words")
        assert [one.text for one in house.said if isinstance(one, Say)] == ["running", "cancelled: True"] * 2
        batch = first
        house.process(SEAT).kill()
        await house.until(lambda: house.gone, "its end")
        house.farm.tell(batch, Cancel(batch.number, 0))
        await house.until(lambda: len(house.ready) == 2, "the next worker")
        house.farm.tell(batch, Cancel(batch.number, 0))

    run(tmp_path, work)


def test_a_dead_worker_is_not_recalled_in_the_moment_of_its_end(tmp_path: Path) -> None:
    """Those who are told of it withdraw what it was to do: that must not keep it from being started again."""

    async def work(house: House) -> None:
        served = python_model(house, WAITING, LATE)
        await load(house, served)
        asked = house.ask(served, width=1)
        await house.until(lambda: Say in map(type, house.said), "the model to run")
        (batch,) = served.instances[0].batches
        gone = house.worker_gone
        house.worker_gone = lambda process: (house.farm.tell(batch, Cancel(batch.number, 0)), gone(process))  # type: ignore[method-assign,func-returns-value]
        house.process(SEAT).kill()
        response = await asyncio.wait_for(asked, PATIENCE_S)
        assert response.error is not None
        await house.until(lambda: len(house.ready) == 2, "the next worker")
        del house.worker_gone

    run(tmp_path, work)


def test_a_worker_reads_what_another_has_made(tmp_path: Path) -> None:
    """Until its maker has gone: then those who had it keep it, and those who had not are told."""

    async def work(house: House) -> None:
        made = await house.load()
        calling = python_model(house, CALLING, LATE)
        await load(house, calling)
        seen: list[Call] = []

        async def ask() -> tuple[Call, asyncio.Future[object]]:
            asked = house.ask(calling, 3)
            await house.until(lambda: sum(type(one) is Call for one in house.said) > len(seen), "the model's call")
            seen.append([one for one in house.said if isinstance(one, Call)][-1])
            return seen[-1], asked  # type: ignore[return-value]

        response = await asyncio.wait_for(house.ask(made, 4), PATIENCE_S)
        output = response.outputs[0]
        assert isinstance(output.place, Lease)
        maker, caller = house.process(), house.process(SEAT)
        for loan in (5, 6):
            call, asked = await ask()
            house.processes.share(output.place.arena, caller)
            caller.answer(call.instance, Answer(call.call, loan, Result([output]), True))
            answered = await asyncio.wait_for(asked, PATIENCE_S)
            assert answered.error is None  # type: ignore[attr-defined]
            total = np.frombuffer(answered.read(answered.outputs[0]), np.int32)  # type: ignore[attr-defined]
            assert (total == 9).all() and len(total) == WIDTH
            del total
            answered.release()  # type: ignore[attr-defined]
            await house.until(lambda loan=loan: Release([loan]) in house.said, "the loan to be given back")  # type: ignore[misc]
        assert bytes(house.processes.view(output.place))[:4] == (8).to_bytes(4, "little")
        maps = Path(f"/proc/{caller.pid}/maps")
        before = maps.read_text().count("tensorfarm-arena")
        maker.kill()
        await house.until(lambda: maker.arena.number in house.gone, "the maker's end")
        await house.until(lambda: maps.read_text().count("tensorfarm-arena") < before, "its arena to be unmapped")
        with pytest.raises(StatusError, match="the worker that made a tensor has gone"):
            house.processes.view(output.place)
        call, asked = await ask()
        house.processes.share(output.place.arena, caller)
        caller.answer(call.instance, Answer(call.call, 7, Result([output]), True))
        answered = await asyncio.wait_for(asked, PATIENCE_S)
        assert "the worker that made a tensor has gone" in answered.error.message  # type: ignore[attr-defined]
        await house.until(lambda: Release([7]) in house.said, "the loan to be given back all the same")
        assert house.process(SEAT) is caller
        response.release()

    run(tmp_path, work)


BROKEN = """
import sys
sys.modules["helper"] = "of the broken one"
raise ValueError("broken")
"""


def test_a_model_is_never_loaded_where_broken_code_has_run(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        served = python_model(house, BROKEN)
        wanted = Inspect(0, "python", served.load.directory, 1, served.load.config, {}, True)
        failing = [lambda: load(house, served), lambda: house.farm.inspect(SEAT, wanted), lambda: load(house, served)]
        for count, fail in enumerate(failing, 1):
            with pytest.raises(StatusError, match="broken"):
                await asyncio.wait_for(fail(), PATIENCE_S)
            assert SEAT not in house.farm.seats
            await house.until(lambda count=count: len(house.gone) == count, "its worker to end")
        file = Path(served.load.directory, "1", "model.py")
        file.write_text("import sys\nassert 'helper' not in sys.modules\n" + ADDING.replace("{more}", "x = 1"))
        await load(house, served)
        await house.check(served)

    run(tmp_path, work)


def test_a_worker_that_waits_for_work_is_not_given_to_another_interpreter(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        served = python_model(house, ADDING.replace("{more}", "x = 1"))
        wanted = Inspect(0, "python", served.load.directory, 1, served.load.config, {}, True)
        await asyncio.wait_for(house.farm.inspect(SEAT, wanted), PATIENCE_S)
        first = house.process(SEAT)
        other = Interpreter(OWN.program, {"OTHER": "1"})
        await asyncio.wait_for(house.farm.load(SEAT, served.load, other), PATIENCE_S)
        assert house.process(SEAT) is not first and house.farm.seats[SEAT].interpreter is other
        await house.check(served)
        await house.until(lambda: first.arena.number in house.gone, "the worker in the wrong interpreter to end")

    run(tmp_path, work)


def test_a_worker_that_has_only_completed_a_configuration_ends_where_nothing_comes_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(farm_module, "LINGER_SECS", 0.0)

    async def work(house: House) -> None:
        served = python_model(house, ADDING.replace("{more}", "x = 1"))
        wanted = Inspect(0, "python", served.load.directory, 1, served.load.config, {}, True)
        await asyncio.wait_for(house.farm.inspect(SEAT, wanted), PATIENCE_S)
        await house.until(lambda: SEAT not in house.farm.seats and house.gone, "the worker that nobody needs to end")

    run(tmp_path, work)
