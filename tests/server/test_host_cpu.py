from __future__ import annotations

from pathlib import Path

import pytest

from tensorfarm.server.host_cpu import HostCpu


class Clock:
    now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def write_stat(proc: Path, *ticks: int) -> None:
    line = "cpu  " + " ".join(str(tick) for tick in ticks)
    (proc / "stat").write_text(f"{line}\ncpu0 1 1 1 1 1 1 1 1 0 0\nintr 5\n")


def test_utilization_is_the_busy_share_since_the_last_sample(tmp_path: Path) -> None:
    clock = Clock()
    write_stat(tmp_path, 100, 0, 100, 800, 0, 0, 0, 0, 0, 0)
    cpu = HostCpu(1000, tmp_path, clock)
    assert cpu.utilization() == 0.0
    # user +10, nice +1, system +5, idle +70, iowait +10, irq +1, softirq +2, steal +1: 20 busy of 100; guest is part of user
    write_stat(tmp_path, 110, 1, 105, 870, 10, 1, 2, 1, 50, 60)
    clock.now_ns = 999
    assert cpu.utilization() == 0.0, "too early for a new sample"
    clock.now_ns = 1000
    assert cpu.utilization() == pytest.approx(0.2)
    write_stat(tmp_path, 210, 1, 105, 870, 10, 1, 2, 1, 50, 60)
    clock.now_ns = 1999
    assert cpu.utilization() == pytest.approx(0.2)
    clock.now_ns = 2000
    assert cpu.utilization() == 1.0
    clock.now_ns = 3000
    assert cpu.utilization() == 0.0, "no tick since"


def test_memory_in_use_is_what_is_not_available(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       24684084 kB\nMemFree:  1 kB\nMemAvailable:   23925740 kB\nHugePages_Total: 0\n")
    assert HostCpu(proc=tmp_path).memory() == (24684084 * 1024, (24684084 - 23925740) * 1024)


@pytest.mark.parametrize("stat", [None, "", "cpu 1 2\n", "intr 1 2 3 4 5 6 7 8 9\n"])
def test_a_kernel_that_does_not_tell(tmp_path: Path, stat: str | None) -> None:
    if stat is not None:
        (tmp_path / "stat").write_text(stat)
        (tmp_path / "meminfo").write_text("MemTotal: 5 kB\n")
    cpu = HostCpu(0, tmp_path)
    assert cpu.utilization() is None
    assert cpu.memory() is None


def test_this_machine() -> None:
    cpu = HostCpu(0)
    utilization, memory = cpu.utilization(), cpu.memory()
    assert utilization is not None and 0 <= utilization <= 1
    assert memory is not None and 0 < memory[1] < memory[0]
