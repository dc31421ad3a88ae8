"""One fault at one point of one migration: made there, and made good again."""

from __future__ import annotations

import asyncio

from predump.faults.damage import DAMAGES
from predump.faults.lab import Laboratory
from predump.faults.points import Pages
from predump.faults.relay import Watcher
from predump.faults.spec import Fault


class Injection(Watcher):
    """Strikes once, when the migration is at the point."""

    def __init__(self, lab: Laboratory, fault: Fault, at: str) -> None:
        self._lab = lab
        self._fault = fault
        self._at = at
        self._work: asyncio.Task[None] | None = None
        self._done = asyncio.Event()
        self._damage = DAMAGES.get(fault.spec.kind)
        self._damages_next = False
        self._held: list[bytes] = []
        self.pages: Pages | None = None
        self.struck = False
        self.healed = False

    def leave_behind(self, pages: Pages) -> None:
        """Keeps them for the judgement."""
        self.pages = pages

    async def reach(self, point: str) -> None:
        """Strikes, if this is where."""
        if self.struck or point != self._at:
            return
        self.struck = True
        # A task of its own: the call that marks the point may end by the fault, half-way through.
        self._work = asyncio.create_task(self._strike_and_heal(), name="fault")
        await self._done.wait()

    async def _strike_and_heal(self) -> None:
        try:
            await self._strike()
        finally:
            self._done.set()
        if self._fault.lasts_s:
            await asyncio.sleep(self._fault.lasts_s)
            await self._heal()

    async def _strike(self) -> None:
        lab, spec = self._lab, self._fault.spec
        match spec.kind:
            case "cut-link":
                await lab.cut_link()
            case "silence-link":
                await lab.silence_link()
            case "slow-link":
                await lab.slow_link(spec.rate_kib * 1024)
            case "kill-destination":
                await lab.kill_destination()
            case "kill-source":
                await lab.kill_source()
            case "pause-destination":
                await lab.pause("destination")
            case "pause-source":
                await lab.pause("source")
            case "lose-broker":
                await lab.lose_broker()
            case "fill-disk":
                await lab.fill_disk()
            case "jump-clock":
                await lab.jump_clock(spec.jump)
            case _:
                self._damages_next = self._damage is not None

    def frames(self, message: bytes) -> list[bytes]:
        """The frame, or what has become of it."""
        if self._damages_next and self._damage is not None:
            self._damages_next = self._fault.spec.every
            return self._damage(message, self._held)
        held, self._held = self._held, []
        return [message, *held]

    async def pace(self) -> None:
        """A destination that is slow takes a while for each frame."""
        if self._fault.spec.kind == "slow-destination" and self.struck and not self.healed:
            await asyncio.sleep(self._fault.delay_s)

    async def read_event(self) -> None:
        """A caller that is slow takes a while for each event."""
        if self._fault.spec.kind == "slow-caller" and self.struck and not self.healed:
            await asyncio.sleep(self._fault.delay_s)

    async def over(self) -> None:
        """Makes it good, if it is not yet. Raises what went wrong in doing it."""
        self._damages_next = False
        work, self._work = self._work, None
        if work is not None:
            await work  # it may be starting a process
        if self.struck and not self.healed:
            await self._heal()

    async def _heal(self) -> None:
        lab = self._lab
        match self._fault.spec.kind:
            case "cut-link" | "silence-link" | "slow-link":
                await lab.heal_link()
            case "kill-destination":
                await lab.start_destination()
            case "kill-source":
                await lab.start_source()
            case "pause-destination":
                await lab.resume("destination")
            case "pause-source":
                await lab.resume("source")
            case "lose-broker":
                await lab.bring_broker()
            case "fill-disk":
                await lab.free_disk()
            case "jump-clock":
                await lab.jump_clock(0)
        self.healed = True
