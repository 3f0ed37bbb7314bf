"""A peer's result, and command chains that run on given cores until a wall-clock limit."""

import os
import shlex
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
GRACE_S = 5.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class PeerResult:
    """What a program did with the images.

    Attributes
    ----------
    name, version : of the program.
    wall_s, cpu_s : from the images on disk to the poses; the CPU seconds of all processes.
    finished : whether it came to its own end within the limit.
    note : where it stood, or what went wrong.
    poses_star : poses of the last state on disk, image names as in the input; None when there were none yet.
    """

    name: str
    version: str
    wall_s: float
    cpu_s: float
    finished: bool
    note: str
    poses_star: Path | None


@dataclass
class Chain:
    """Commands that run one after the other, in ``work``, pinned to ``cores``, under one limit of wall-clock seconds.

    ``wall_s`` and ``cpu_s`` add up over the commands; ``failure`` says why the chain stopped, and is empty while all is well.
    """

    work: Path
    cores: list[int]
    limit_s: float
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    wall_s: float = 0.0
    cpu_s: float = 0.0
    failure: str = ""

    def own_work(self, wall_s: float, cpu_s: float) -> None:
        """Count work that was done for the peer in this process, such as converting its images."""
        self.wall_s, self.cpu_s = self.wall_s + wall_s, self.cpu_s + cpu_s

    def run(self, command: list[str], fine: tuple[int, ...] = (0,)) -> bool:
        """Run a command to its end or to the limit; whether its status was ``fine``. Nothing once the chain has failed."""
        if not self.failure and self.wall_s >= self.limit_s:
            self.failure = "limit"
        if self.failure:
            return False
        pinned = ["taskset", "-c", ",".join(map(str, self.cores)), *command]
        threads = dict.fromkeys(THREAD_VARIABLES, str(len(self.cores)))
        # idle OpenMP threads that spin would take the cores from the others
        environment = os.environ | threads | {"OMP_WAIT_POLICY": "PASSIVE"} | self.environment
        with open(self.log, "a") as log:
            print(f"$ {shlex.join(pinned)}", file=log, flush=True)
            started = time.monotonic()
            process = subprocess.Popen(
                pinned, cwd=self.work, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                status, cpu_s = _wait(process.pid, started + self.limit_s - self.wall_s)
            except BaseException:
                _kill_session(process.pid)
                raise
            wall_s = time.monotonic() - started
            print(f"# {wall_s:.1f} s wall, {cpu_s:.1f} s CPU, {'limit' if status is None else f'exit {status}'}", file=log)
        process.returncode = -signal.SIGKILL if status is None else status
        self.own_work(wall_s, cpu_s)
        if status is None:
            self.failure = "limit"
        elif status not in fine:
            self.failure = f"{Path(command[0]).name}: exit {status}, see {self.log}"
        return not self.failure


def _wait(pid: int, deadline: float) -> tuple[int | None, float]:
    """Exit status (None: killed at the deadline) and CPU seconds of a session leader with all its descendants."""
    pause, waited, status = 0.01, 0, 0
    while not waited and time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(2 * pause, 0.2)
        waited, status, usage = os.wait4(pid, os.WNOHANG)
    if waited:
        _kill_session(pid)
        return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
    # the usage of descendants whose parent is killed as well never reaches us: read it while they live
    alive = sum(cpu_s for _, cpu_s in _session(pid))
    _kill_session(pid)
    _, _, usage = os.wait4(pid, 0)
    return None, max(alive, usage.ru_utime + usage.ru_stime)


def _session(leader: int) -> list[tuple[int, float]]:
    """Processes of a session, each with its CPU seconds and those of the children it has waited for.

    MPI puts its ranks into process groups of their own: only the session holds them all.
    """
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # the command's name, in parentheses, may hold anything
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append((int(stat.parent.name), sum(map(int, fields[11:15])) / TICKS))
    return found


def _kill_session(leader: int) -> None:
    """End every process of the session: politely, then for good."""
    for how, patience in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        for pid, _ in _session(leader):
            try:
                os.kill(pid, how)
            except ProcessLookupError:
                continue
        give_up = time.monotonic() + patience
        while _session(leader) and time.monotonic() < give_up:
            time.sleep(0.05)
