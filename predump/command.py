"""What the groups of commands share: a default command, and errors in one line.

A group made with ``DefaultGroup.of("check")`` runs ``check`` when the first argument is none of
its commands: ``predump conform TRACE`` is ``predump conform check TRACE``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, NoReturn

import typer
from typer.core import TyperGroup

from predump.exit_status import BAD_INPUT, FAILED, INTERRUPTED


class DefaultGroup(TyperGroup):
    """A group whose ``default`` command need not be named."""

    default: ClassVar[str] = ""

    @classmethod
    def of(cls, default: str) -> type[DefaultGroup]:
        """The class of groups that fall back on the command ``default``."""
        return type(f"DefaultGroup_{default}", (cls,), {"default": default})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command's name in front where no command is named."""
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = [self.default, *args]
        return super().parse_args(ctx, args)


def fail(message: str, code: int) -> NoReturn:
    """Say ``message`` in one line on standard error and exit."""
    typer.echo(f"predump: error: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)


def unexpected(error: Exception) -> tuple[str, int]:
    """Line and exit status for an error that no command expects."""
    return f"unexpected {type(error).__name__}: {error} (--debug shows where)", FAILED


def one_line_errors(
    *bad_input: type[Exception], debug: bool = False
) -> AbstractContextManager[None]:
    """Turn exceptions into one line: status 2 for ``bad_input``, 1 for any other."""
    return explained_errors(
        lambda error: (
            (str(error), BAD_INPUT) if isinstance(error, bad_input) else unexpected(error)
        ),
        debug=debug,
    )


@contextmanager
def explained_errors(
    explained: Callable[[Exception], tuple[str, int]], *, debug: bool = False
) -> Iterator[None]:
    """Turn exceptions into one line and an exit status; with ``debug`` let them through."""
    try:
        yield
    except (typer.Exit, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        message, code = explained(error)
        fail(message, code)
