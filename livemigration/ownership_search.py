"""Goes through every state of `livemigration.ownership_model`, up to the first that is wrong.

* Never two: the task never may run at both hosts. A destination that is down counts if what it kept
  would let it run when it is started again.
* Right bytes: the destination takes over only the memory of the freeze that the source is at.
* A hand-over is kept: once the source has let go, the task runs at the destination or is whole in
  its state directory, and what is whole there stays. A source does not go back by itself to the
  freeze of a task that has run at the destination.
* Never none for ever: from every state that can be reached, one where exactly one host runs the
  task can be reached without any further mishap. Only a source that died with what only it had is
  excepted: then nobody may run the task.
* A post-copy is only paused: while both hosts have what it takes, the task at the destination can
  go on without any further mishap, and without anybody's word.

The search is breadth first, so a counterexample is as short as there is one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from livemigration.ownership import Ownership
from livemigration.ownership_model import Model, State, Step

MOST_STATES = 5_000_000

_Reached = dict[State, tuple[State | None, str, int]]
_Backwards = dict[State, list[tuple[State, bool]]]
"""From where a state is reached without mishap, and whether somebody decided it."""


@dataclass(frozen=True, slots=True)
class Counterexample:
    """How the hosts get to a state that must not be."""

    wrong: str
    trace: tuple[tuple[str, State], ...]

    def __str__(self) -> str:
        lines = [f"{self.wrong}:"]
        lines += [
            f"  {number:2}. {what}\n        {state}"
            for number, (what, state) in enumerate(self.trace)
        ]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Searched:
    """What the search went through, and what it found."""

    states: int
    steps: int
    deepest: int
    counterexample: Counterexample | None


def search(model: Model | None = None) -> Searched:
    """All reachable states, or those up to one that breaks a rule; RuntimeError without an end."""
    model = model or Model()
    first = model.start()
    reached: _Reached = {first: (None, "", 0)}
    backwards: _Backwards = {}
    queue = deque([first])
    steps = deepest = 0
    while queue:
        state = queue.popleft()
        depth = reached[state][2]
        deepest = max(deepest, depth)
        for step in model.steps(state):
            steps += 1
            after = step.state
            if after not in reached:
                if len(reached) >= MOST_STATES:
                    raise RuntimeError(f"more than {MOST_STATES} states")
                reached[after] = (state, step.what, depth + 1)
                queue.append(after)
            if not step.mishap:
                backwards.setdefault(after, []).append((state, step.by_hand))
            wrong = wrong_state(after) or wrong_step(state, step)
            if wrong:
                trace = (*_trace(reached, state), (step.what, after))
                return Searched(
                    len(reached), steps, deepest, Counterexample(wrong, _started(trace))
                )
    found = None
    stuck, paused = _stuck(reached, backwards), _paused(reached, backwards, model.bounds.streams)
    for state_found, wrong in (
        (paused, "the task is paused for ever, though both hosts have what it takes"),
        (stuck, "no host runs the task, and none ever will though all messages get through"),
    ):
        if state_found is not None and found is None:
            found = Counterexample(wrong, _started(_trace(reached, state_found)))
    return Searched(len(reached), steps, deepest, found)


def wrong_state(state: State) -> str:
    """Which rule a state breaks; "" if none."""
    if state.source_runs and state.destination_has_it:
        return "two hosts may run the task"
    let_go = state.doing != "gone" and state.source is Ownership.RELEASED
    if let_go and not state.destination_has_it:
        return "the source let go of a task that the destination has not"
    return ""


def wrong_step(before: State, step: Step) -> str:
    """Which rule a step breaks; "" if none."""
    after = step.state
    ran = before.served or before.attempt in (before.home.attempt, before.other.attempt)
    if ran and before.source is Ownership.IN_DOUBT and after.source_runs and not step.by_hand:
        return (
            "the source goes back to the freeze by itself, though the task ran at the destination"
        )
    took_over = (
        before.up
        and before.session == after.session
        and before.destination is not Ownership.COMMITTED
        and after.destination is Ownership.COMMITTED
    )
    if took_over and not after.complete:
        return "the destination takes over memory that has not arrived"
    if took_over and before.doing != "gone":
        offered = before.source in (Ownership.IN_DOUBT, Ownership.SERVING, Ownership.RELEASED)
        if before.attempt != after.session or not offered:
            return "the destination takes over memory that the source has gone on from"
    for name, was, now in (("home", before.home, after.home), ("other", before.other, after.other)):
        if was.whole and now != was:
            return f"the {name} directory forgets a task that was taken over"
    return ""


def _excepted(state: State) -> bool:
    """The source died, and what the task needs died with it."""
    return state.doing == "gone" and not state.destination_has_it


def _stuck(reached: _Reached, backwards: _Backwards) -> State | None:
    """A state, the first found, from which there is no way to one running task."""
    good = [
        state
        for state in reached
        if state.source_runs != state.destination_runs or _excepted(state)
    ]
    saved = _leading_to(good, backwards, by_hand=True)
    return next((state for state in reached if state not in saved), None)


def _paused(reached: _Reached, backwards: _Backwards, streams: int) -> State | None:
    """One in which the task stands still over there, and does not get on by itself any more.

    Of those from which the source may open another stream, of so many.
    """
    goes_on = [state for state in reached if state.destination_runs]
    saved = _leading_to(goes_on, backwards, by_hand=False)
    return next(
        (
            state
            for state in reached
            if state.paused and state.stream < streams and state not in saved
        ),
        None,
    )


def _leading_to(good: list[State], backwards: _Backwards, *, by_hand: bool) -> set[State]:
    """These, and all from which one of them is reached without mishap; `by_hand`: or decided."""
    saved = set(good)
    queue = deque(good)
    while queue:
        for before, decided in backwards.get(queue.popleft(), ()):
            if before not in saved and (by_hand or not decided):
                saved.add(before)
                queue.append(before)
    return saved


def _trace(reached: _Reached, state: State) -> tuple[tuple[str, State], ...]:
    steps: list[tuple[str, State]] = []
    at: State | None = state
    while at is not None:
        before, what, _ = reached[at]
        steps.append((what, at))
        at = before
    return tuple(reversed(steps))


def _started(trace: tuple[tuple[str, State], ...]) -> tuple[tuple[str, State], ...]:
    return (("the task runs at the source", trace[0][1]), *trace[1:])
