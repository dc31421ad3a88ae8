"""The exceptions of a migration.

* MigrationError - anything that ends or disturbs a migration; its text is one line for the user
  * BadRequest - a message or setting that cannot be served (INVALID_ARGUMENT)
  * WrongState - the right call at the wrong time (FAILED_PRECONDITION)
  * UnknownMigration - this host knows nothing of it (NOT_FOUND)
  * DamagedFrame - a frame of the transfer stream that is not what was sent (DATA_LOSS)
  * NoSpace - the destination has no room for the task (RESOURCE_EXHAUSTED)
  * DestinationLost - the destination cannot be reached or came back without the task
  * SourceLost - the source of a post-copy is gone, and pages with it, until it is back
    (UNAVAILABLE)
  * CommitInDoubt - commit was sent and no answer came
  * Aborted - somebody asked for the end of the migration
  * PolicyFailed - a policy of the user's raised an error, or said what cannot be followed
"""

from __future__ import annotations


class MigrationError(Exception):
    """Base of all; `str()` is one line that says what is wrong and what to change."""


class BadRequest(MigrationError):
    """A message or a setting that cannot be served as it is."""


class WrongState(MigrationError):
    """A call that this state of the migration does not allow."""


class UnknownMigration(MigrationError):
    """The host knows nothing of this migration."""


class DamagedFrame(MigrationError):
    """A frame that is not what the source sent."""


class NoSpace(MigrationError):
    """No room for the task."""


class DestinationLost(MigrationError):
    """The destination is gone, or came back without the task."""


class SourceLost(MigrationError):
    """The source is gone, for now or for good, before all pages of a post-copy were here."""


class Aborted(MigrationError):
    """The migration was stopped on request."""


class CommitInDoubt(MigrationError):
    """Commit was sent and no answer came: the destination may own the task now, or not."""


class PolicyFailed(MigrationError):
    """A policy of the user's failed; the task stays at the source."""
