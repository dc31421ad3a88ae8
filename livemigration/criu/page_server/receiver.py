"""The serving end: what `criu page-server` does with one connection of a dump.

Every command is checked before anything is done about it; whatever a peer does wrong is a
`PageServerError` and the end of its connection, as with the real server, which has no word for
errors either.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from livemigration.criu.magic import PageFlags
from livemigration.criu.page_server.channel import Channel
from livemigration.criu.page_server.checkpoint import Checkpoint, ImageCount
from livemigration.criu.page_server.protocol import (
    ANSWER,
    HAS_PARENT,
    Command,
    Dialect,
    HeaderReader,
    Message,
    PageServerError,
    Target,
)

_DONE: Final = 0
_WITH_TARGET: Final = frozenset(
    {Command.ADD, Command.HOLE, Command.OPEN, Command.OPEN2, Command.PARENT, Command.ADD_F}
)


class Receiver:
    """One conversation with a client that dumps. Leaving the context closes what came so far."""

    def __init__(self, channel: Channel, begin: Callable[[], Checkpoint]) -> None:
        """`begin` is called when the client has said something: it may want no dump at all."""
        self._channel = channel
        self._begin = begin
        self._checkpoint: Checkpoint | None = None
        self._reader = HeaderReader()
        self.told_of_parent = False
        """The last thing it heard is that there is a parent: many a client goes away at that."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._checkpoint is not None:
            self._checkpoint.__exit__(kind, error, _)

    @property
    def dialect(self) -> Dialect | None:
        """What the client speaks; None until it has said anything."""
        return self._reader.dialect

    @property
    def counts(self) -> tuple[ImageCount, ...]:
        """What came so far, in the order of coming."""
        return () if self._checkpoint is None else self._checkpoint.counts

    def run(self) -> bool:
        """Serves until the client says that all is there; then `confirm` must follow.

        False: the client looked, as some tools do before they dump, and went away. Raises
        PageServerError, ImageError.
        """
        while (message := self._channel.message(self._reader)) is not None:
            if message.command in (Command.CLOSE, Command.FORCE_CLOSE):
                if self.told_of_parent:
                    # A client that fails says CLOSE as well.
                    raise PageServerError("the client went away when it was told of a parent")
                if self._checkpoint is not None:
                    self._checkpoint.finish()
                return bool(self.counts)
            self._serve(message)
        if self.counts:
            raise PageServerError("the connection ended without CLOSE: the dump is not complete")
        return False

    def confirm(self, *, lent: bool = False) -> None:
        """Tells the client that all is kept, and waits for its end. Raises PageServerError.

        lent: the connection is somebody else's, who goes on to use it (`criu --ps-socket`).
        """
        self._channel.send([ANSWER.pack(_DONE)])
        if lent:
            return
        if not self._channel.at_end():
            raise PageServerError("the client sent more after CLOSE; what came before is complete")
        self._channel.finish()

    def _serve(self, message: Message) -> None:
        command = message.command
        if command == Command.GET:
            raise PageServerError(
                "the client asks for lazy pages, and this port takes dumps: `criu lazy-pages` goes "
                "to a `criu dump --lazy-pages` or to `predump criu lazy-server`"
            )
        if command not in _WITH_TARGET:
            raise PageServerError(f"unknown command {command:#x}")
        target = Target.from_wire(message.target)
        if self._checkpoint is None:
            self._checkpoint = self._begin()
        if command == Command.PARENT:
            self.told_of_parent = self._checkpoint.in_parent(target)
            self._channel.send([ANSWER.pack(self.told_of_parent)])
        elif command in (Command.OPEN2, Command.OPEN):
            self.told_of_parent = self._checkpoint.open(target)
            if command == Command.OPEN2:
                self._channel.send([HAS_PARENT.pack(self.told_of_parent)])
        elif command == Command.HOLE:
            self._add(self._checkpoint, target, message, PageFlags.PARENT)
        else:
            flags = PageFlags.PRESENT if command == Command.ADD else message.flags
            self._add(self._checkpoint, target, message, flags)

    def _add(self, checkpoint: Checkpoint, target: Target, message: Message, flags: int) -> None:
        checkpoint.require(target)
        self.told_of_parent = False
        address, pages = message.address, message.pages
        image = checkpoint.check(address, pages, flags)
        if flags & PageFlags.PRESENT:
            image.take_from(self._channel, pages * image.page_size)
            image.present(address, pages, flags)
        elif flags & PageFlags.PARENT:
            image.in_parent(address, pages)
        else:
            image.lazy(address, pages)
