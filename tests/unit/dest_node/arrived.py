"""A task that has come to a destination with a state directory, by the sender's own frames."""

from __future__ import annotations

from dest_node.incoming import IncomingTask, Request
from dest_node.store import StateDirectory
from tests.unit.dest_node.sender import Sender

RAN_NS = 10_000_000
"""Workload time before the hand-over."""


def arrived(store: StateDirectory, sender: Sender) -> IncomingTask:
    """A task that came whole, is verified and waits for the hand-over."""
    workload = sender.workload()
    workload.run_until(sender.task, RAN_NS)
    incoming = IncomingTask.prepare(Request("m-1", sender.struct, "", "virtual"), store)
    for frame in sender.round(final=True, workload=workload):
        incoming.apply(frame)
    incoming.digest()
    incoming.verified(equal=True)
    return incoming
