"""The simulated host: its tasks by pid, and what is done with them.

A task is made from a scenario, or restored from images. A host that `adopts` also makes one for
every real process that a client names: a container that a tool started is then, to that tool, the
outside of a simulated task. It is killed when the task is dumped away, as CRIU kills what it dumps.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from livemigration.costs import CostSpec
from livemigration.criu.pb import rpc_pb2
from livemigration.criu.rpc.errors import BadOptions, PeerGone, RpcFailure
from livemigration.criu.rpc.host import (
    DEFAULT_VERSION,
    Features,
    Notifier,
    PageServerIs,
    Version,
)
from livemigration.criu.rpc.log import RequestLog
from livemigration.criu.rpc.options import Request
from livemigration.errors import MigrationError
from livemigration.execution import Execution
from predump.criu_host.dump import Dump, failures
from predump.criu_host.page_servers import PageServer, open_page_server, serve
from predump.criu_host.restore import load_images, write_restore_stats
from predump.criu_host.task import SimulatedTask
from predump.overrides import OverrideError, parse_override
from predump.scenario import Scenario, ScenarioError, load_scenario
from source_node.hosting import TaskRequest, build_task

FIRST_PID = 1000
DEFAULT_STEP_NS = 100_000_000
MOST_TASKS = 256
MOST_PAGE_SERVERS = 16
MOST_ADVANCE_NS = 3600 * 10**9
_KILLED = int(signal.SIGKILL)
_KEPT_ENDS = 4096
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HostConfig:
    """version: what is answered; mem_track: whether the kernel can track memory; adopt: the
    scenario of tasks for real processes, None to refuse these; step_ns: how long a task on the
    virtual clock runs before each dump; dialect: of page servers that are dumped to, "4.1" or
    "4.2"."""

    version: Version = DEFAULT_VERSION
    mem_track: bool = True
    adopt: Scenario | None = None
    step_ns: int = DEFAULT_STEP_NS
    dialect: str = "4.2"


class SimulatedHost:
    """Tasks, and page servers. `close` ends them all."""

    def __init__(self, config: HostConfig | None = None) -> None:
        self.config = config or HostConfig()
        self.version = self.config.version
        self.features = Features(
            mem_track=self.config.mem_track, lazy_pages=False, pidfd_store=False
        )
        self.tasks: dict[int, SimulatedTask] = {}
        self._servers: dict[int, PageServer] = {}
        self._ends: dict[int, int] = {}  # pid -> status, of those that have ended
        self._pids = count(FIRST_PID)
        self._starting = asyncio.Lock()

    # -- tasks

    async def start(self, scenario: Scenario, pid: int = 0) -> SimulatedTask:
        """Makes a task of a scenario and lets it run; `pid` 0: a free one.

        Raises RpcFailure (EEXIST for a pid that is taken), ValueError for what cannot be built.
        """
        if scenario.task.tracker != "soft-dirty":
            raise RpcFailure(
                f'tracker "{scenario.task.tracker}": CRIU reads soft-dirty; set tracker = '
                '"soft-dirty"'
            )
        if len(self.tasks) >= MOST_TASKS:
            raise RpcFailure(f"there are {MOST_TASKS} tasks already, the limit here", errno.EAGAIN)
        pid = pid or self._free_pid()
        self._check_free(pid)
        request = TaskRequest(
            spec=scenario.task, struct={}, clock=scenario.migration.clock, base_dir=Path.cwd()
        )
        task, workload, extra = await asyncio.to_thread(build_task, request)
        wall = scenario.migration.clock == "wall"
        costs = scenario.migration.costs
        fault_ns = 0 if wall else costs.write_fault
        simulated = SimulatedTask(
            pid=pid,
            name=scenario.name[:15],
            spec=scenario.task,
            costs=costs,
            clock=scenario.migration.clock,
            step_ns=self.config.step_ns,
            task=task,
            workload=workload,
            execution=Execution(task, workload, wall=wall, write_fault_ns=fault_ns),
            base_dir=request.base_dir,
            extra_pages=extra,
            pids={1: pid},
        )
        self._add(simulated)
        simulated.thaw()
        return simulated

    def _free_pid(self) -> int:
        return next(pid for pid in self._pids if pid not in self._taken())

    def _taken(self) -> set[int]:
        """Pids of processes of tasks, and of page servers."""
        taken = set(self._servers)
        for task in self.tasks.values():
            taken |= {task.pid, *task.pids.values()}
        return taken

    def _check_free(self, pid: int) -> None:
        if pid in self._taken():
            raise RpcFailure(f"pid {pid} is taken: end its task first", errno.EEXIST)

    def _add(self, task: SimulatedTask) -> None:
        self._check_free(task.pid)
        self.tasks[task.pid] = task
        self._ends.pop(task.pid, None)

    async def end(self, task: SimulatedTask, status: int = _KILLED) -> None:
        """Ends a task; who waits for it gets `status`."""
        if self.tasks.pop(task.pid, None) is None:
            return
        self._remember(task.pid, status)
        if task.stand_in >= 0:
            asyncio.get_running_loop().remove_reader(task.stand_in)
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(task.stand_in, signal.SIGKILL)
            os.close(task.stand_in)
            task.stand_in = -1
        await task.end(status)

    def _remember(self, pid: int, status: int) -> None:
        self._ends[pid] = status
        while len(self._ends) > _KEPT_ENDS:
            del self._ends[next(iter(self._ends))]

    async def close(self) -> None:
        """Ends everything."""
        for task in list(self.tasks.values()):
            await self.end(task)
        for server in list(self._servers.values()):
            server.close()
            if server.task is not None:
                await asyncio.gather(server.task, return_exceptions=True)

    async def _find(self, pid: int) -> SimulatedTask:
        """The task that a client means. Raises RpcFailure (ESRCH)."""
        if pid in self.tasks:
            return self.tasks[pid]
        if self.config.adopt is not None:
            async with self._starting:
                return self.tasks.get(pid) or await self._adopt(pid, self.config.adopt)
        known = ", ".join(map(str, self.tasks)) or "none"
        raise RpcFailure(f"there is no simulated task {pid}; those here: {known}", errno.ESRCH)

    async def _adopt(self, pid: int, scenario: Scenario) -> SimulatedTask:
        """A new task whose outside is the real process `pid`."""
        try:
            process = os.pidfd_open(pid)
        except OSError as error:
            raise RpcFailure(
                f"there is neither a simulated task nor a process {pid}: {error.strerror}",
                errno.ESRCH,
            ) from error
        try:
            task = await self.start(scenario, pid)
        except BaseException:
            os.close(process)
            raise
        task.own_net = _has_own_net(pid)
        self._stands_in(task, process)
        return task

    def _stands_in(self, task: SimulatedTask, process: int) -> None:
        """From now on the task ends with the real process."""
        task.stand_in = process
        loop = asyncio.get_running_loop()
        ending: set[asyncio.Task[None]] = set()

        def ended() -> None:
            loop.remove_reader(process)
            job = loop.create_task(self.end(task))
            ending.add(job)
            job.add_done_callback(ending.discard)

        loop.add_reader(process, ended)

    # -- what clients ask

    async def check(self) -> None:
        """See `livemigration.criu.rpc.host.Host`."""

    async def pre_dump(self, request: Request, journal: RequestLog) -> None:
        """See `livemigration.criu.rpc.host.Host`."""
        self._check(request, tracks=True)
        task = await self._find(request.pid)
        async with task.busy:
            self._still_there(task)
            dump = Dump(task, request, journal, final=False, dialect=self.config.dialect)
            with failures("pre-dump"), ExitStack() as stack:
                await dump.prepare(stack)
                await dump.freeze()
                try:
                    await dump.write()
                finally:
                    task.thaw()

    async def dump(self, request: Request, journal: RequestLog, notify: Notifier) -> None:
        """See `livemigration.criu.rpc.host.Host`."""
        self._check(request, tracks=request.track_mem)
        task = await self._find(request.pid)
        journal.info(f"Dumping processes (pid: {task.pid} comm: {task.name})")
        async with task.busy:
            self._still_there(task)
            await notify.reached("pre-dump")
            dump = Dump(task, request, journal, final=True, dialect=self.config.dialect)
            own_net = task.own_net or request.has_net
            with failures("dump"), ExitStack() as stack:
                await dump.prepare(stack)
                await dump.freeze()
                try:
                    if own_net:
                        await notify.reached("network-lock")
                    await notify.reached("query-ext-files")
                    await dump.write()
                    await notify.reached("post-dump")
                except BaseException:
                    await self._go_on(task, notify, own_net=own_net)
                    raise
                if request.leave_running:
                    await self._go_on(task, notify, own_net=own_net)
                elif request.leave_stopped:
                    task.stopped = True
                else:
                    await self.end(task)

    async def _go_on(self, task: SimulatedTask, notify: Notifier, *, own_net: bool) -> None:
        """The task runs on here, whatever the client makes of that."""
        task.thaw()
        if own_net:
            with suppress(RpcFailure, PeerGone):
                await notify.reached("network-unlock")

    async def restore(self, request: Request, journal: RequestLog, notify: Notifier) -> int:
        """See `livemigration.criu.rpc.host.Host`."""
        if request.lazy_pages:
            raise RpcFailure("lazy pages are not there for simulated tasks", errno.ENOTSUP)
        if request.auto_dedup:
            journal.warning("auto_dedup: the images stay whole, since they may be restored again")
        await notify.reached("pre-restore")
        began = asyncio.get_running_loop().time()
        with failures("restore"):
            task = await asyncio.to_thread(
                load_images, request.images, CostSpec(), request.stand_in
            )
        pages = task.extra_pages
        try:
            if request.stand_in:
                self._stands_in(task, os.pidfd_open(request.stand_in))
            self._add(task)
        except (OSError, RpcFailure) as error:
            await task.end(_KILLED)
            if isinstance(error, RpcFailure):
                raise
            raise RpcFailure(f"the stand-in is gone: {error.strerror}", errno.ESRCH) from error
        try:
            with failures("restore"):
                await self._resume(task, request, journal, notify)
                took = int((asyncio.get_running_loop().time() - began) * 1e9)
                await asyncio.to_thread(write_restore_stats, request.work, task, pages, took)
        except BaseException:
            await self.end(task)
            raise
        return task.pid

    async def _resume(
        self, task: SimulatedTask, request: Request, journal: RequestLog, notify: Notifier
    ) -> None:
        journal.info(f"Restored {len(task.task.processes)} processes of task {task.pid}")
        await notify.reached("setup-namespaces", task.pid)
        await notify.reached("post-setup-namespaces")
        await notify.reached("post-restore", task.pid)
        if task.own_net or request.has_net:
            await notify.reached("network-unlock")
        await notify.reached("pre-resume")
        task.stopped = request.leave_stopped
        task.thaw()
        await notify.reached("post-resume")

    async def start_page_server(self, request: Request, journal: RequestLog) -> PageServerIs:
        """See `livemigration.criu.rpc.host.Host`."""
        if len(self._servers) >= MOST_PAGE_SERVERS:
            raise RpcFailure(
                f"{MOST_PAGE_SERVERS} page servers wait for their clients, the limit here",
                errno.EAGAIN,
            )
        with failures("page server"):
            server = await asyncio.to_thread(open_page_server, self._free_pid(), request)
        page_size = self._page_size()
        self._servers[server.pid] = server
        server.task = asyncio.create_task(self._serve_pages(server, request.parent, page_size))
        journal.info(f"Page server of port {server.port} started")
        return PageServerIs(server.pid, server.port)

    async def _serve_pages(self, server: PageServer, parent: str, page_size: int) -> None:
        await serve(server, parent, page_size)
        if server.status:
            _log.warning("page server %d of port %d: %s", server.pid, server.port, server.why)
        self._servers.pop(server.pid, None)
        self._remember(server.pid, server.status)

    def _page_size(self) -> int:
        """What the protocol does not tell: that of the tasks here, or the usual one."""
        return next((task.spec.page_size for task in self.tasks.values()), 4096)

    async def control(self, control: rpc_pb2.RpcControl) -> list[rpc_pb2.RpcTask]:
        """See `livemigration.criu.rpc.host.Host`."""
        if control.start:
            try:
                overrides = [parse_override(os.fsdecode(text)) for text in control.set]
                file = os.fsdecode(control.start)
                scenario = await asyncio.to_thread(load_scenario, file, overrides)
                await self.start(scenario, control.pid)
            except (ScenarioError, OverrideError) as error:
                raise RpcFailure(str(error), errno.EINVAL) from error
            except (MigrationError, ValueError) as error:
                raise RpcFailure(f"{control.start}: {error}") from error
        elif control.HasField("pid"):
            task = self.tasks.get(control.pid)
            if task is None:
                raise RpcFailure(f"there is no simulated task {control.pid}", errno.ESRCH)
            async with task.busy:
                await self._do_to(task, control)
        return [_described(task) for _, task in sorted(self.tasks.items())]

    async def _do_to(self, task: SimulatedTask, control: rpc_pb2.RpcControl) -> None:
        self._still_there(task)
        if control.advance_ns:
            if task.wall:
                raise RpcFailure(f"task {task.pid} runs by the wall clock: it advances by itself")
            if control.advance_ns > MOST_ADVANCE_NS:
                raise RpcFailure("a task is advanced by an hour at most", errno.EINVAL)
            await asyncio.to_thread(task.execution.advance, control.advance_ns)
        if control.end:
            await self.end(task)

    async def wait(self, pid: int) -> int:
        """See `livemigration.criu.rpc.host.Host`."""
        waited: SimulatedTask | PageServer | None = self.tasks.get(pid) or self._servers.get(pid)
        if waited is not None:
            await waited.ended.wait()
            return waited.status
        if pid in self._ends:
            return self._ends[pid]
        raise RpcFailure(f"no task or page server {pid} to wait for", errno.ECHILD)

    def _check(self, request: Request, *, tracks: bool) -> None:
        if tracks and not self.features.mem_track:
            raise RpcFailure("Tracking memory is not available")
        if request.lazy_pages:
            raise RpcFailure("lazy pages are not there for simulated tasks", errno.ENOTSUP)
        if request.leave_running and request.leave_stopped:
            raise BadOptions("leave_running and leave_stopped exclude each other")

    def _still_there(self, task: SimulatedTask) -> None:
        """After waiting for another dump of the same task, which may have ended it."""
        if self.tasks.get(task.pid) is not task:
            raise RpcFailure(f"task {task.pid} was dumped meanwhile", errno.ESRCH)


def _described(task: SimulatedTask) -> rpc_pb2.RpcTask:
    return rpc_pb2.RpcTask(
        pid=task.pid,
        name=task.name,
        memory=task.spec.memory,
        clock=task.clock,
        running=task.execution.running,
        ran_ns=task.execution.workload_ns,
        operations=task.workload.ops_done,
    )


def _has_own_net(pid: int) -> bool:
    """Whether a process is in another network namespace than this one."""
    try:
        return os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
    except OSError:
        return False
