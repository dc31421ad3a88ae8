"""All that can happen between two hosts that hand a task over, as a graph of states.

The states of the two hosts move by the tables that the nodes themselves use
(`livemigration.ownership`): `SOURCE`, `DESTINATION`, and the rules `counts` and `fate`. Around them
is what the nodes' code does between two steps: which message the source sends, what the destination
answers, what is in a state directory, and what is only in a process.

What may go wrong, at any moment and in any order:

* A message is lost, or its answer is: it stays under way for ever, and whoever waits gives up.
* A request comes late, twice, or after requests that were sent after it: what is under way stays
  there and may arrive any number of times, also at a process that was started since. Only the
  frames of the transfer cannot: they belong to one connection to one process. (Commit names the
  process that it is for, and another one does not know the migration.)
* The destination's process dies, and is started again with its state directory or with another.
* The source's process dies, and with it what it had.
* The source aborts, and tries once more.
* The page stream of a post-copy breaks, is opened again, or falls silent. Its opening and the pages
  that go over it may come late, but belong to one connection: they come once, and over no other
  stream. Whoever hears nothing may give up at any moment: the destination, whose task then stands
  still, and the source, which asks and may serve again. A page may be wrong, which is for good.

The search (`livemigration.ownership_search`) goes through every state that can be reached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from livemigration import ownership
from livemigration.ownership import Event, Ownership, Table

HOME, OTHER = "home", "other"
"""State directories: the destination's own, and another that somebody starts it with."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What decides: the nodes' own tables and rules, or, to test the search, wrong ones."""

    source: Table = field(default_factory=lambda: ownership.SOURCE)
    destination: Table = field(default_factory=lambda: ownership.DESTINATION)
    counts: Callable[[str, str], bool] = ownership.counts
    fate: Callable[..., Event] = ownership.fate
    page_counts: Callable[[int, int], bool] = ownership.page_counts
    stands_still: Callable[..., bool] = ownership.stands_still


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may go wrong, so that there is an end."""

    attempts: int = 2
    destination_crashes: int = 2
    source_crashes: int = 1
    post_copy: bool = True
    streams: int = 2  # of pages, in one attempt


class Kept(NamedTuple):
    """What a state directory says: nothing, or that it has a task (whole, or only taken over)."""

    attempt: int = 0
    whole: bool = False


class Message(NamedTuple):
    """A request under way. `process`: the only one that serves it; 0: any."""

    kind: str
    attempt: int
    process: int = 0
    stream: int = 0


class Answer(NamedTuple):
    """An answer under way to the call that the source waits for."""

    kind: str
    says: Ownership = Ownership.NONE
    directory: str = ""
    process: int = 0


class State(NamedTuple):
    """Both hosts, what they keep, and what is under way between them."""

    source: Ownership = Ownership.RUNNING
    doing: str = "idle"  # idle, prepare, transfer, verify, open, commit, ask, serve, gone
    attempt: int = 0
    lazy: bool = False  # this attempt is a post-copy
    served: bool = False  # the source knows that the task ran there without all its pages
    known: str = ""  # the directory of the destination that made room for the task
    target: int = 0  # ... and the number of its process: nobody else may take the task over
    destination: Ownership = Ownership.NONE
    session: int = 0  # the attempt that is there; 0: none
    complete: bool = False  # it has all pages (of a post-copy: all that come before)
    missing: bool = False  # post-copy: it runs, and pages are still to come
    halted: str = ""  # ... and do not come: it stands still ("paused"), or does "for good"
    stream: int = 0  # the page stream that the source opened last
    held: int = 0  # the one that the destination holds; 0: none
    pages: frozenset[int] = frozenset()  # streams over which pages are under way
    directory: str = HOME
    process: int = 1  # number of the destination's process
    up: bool = True
    home: Kept = Kept()
    other: Kept = Kept()
    requests: frozenset[Message] = frozenset()
    answers: frozenset[Answer] = frozenset()
    source_crashes: int = 0

    @property
    def kept(self) -> Kept:
        """In the directory of the destination's process."""
        return self.home if self.directory == HOME else self.other

    def keep(self, kept: Kept) -> State:
        """With that in the directory of the destination's process."""
        return self._replace(home=kept) if self.directory == HOME else self._replace(other=kept)

    @property
    def destination_runs(self) -> bool:
        """Whether the task runs at the destination now."""
        return self.up and self.destination.may_run and not self.halted

    @property
    def paused(self) -> bool:
        """Whether it stands still there for want of pages that the source has."""
        there = self.up and self.destination is Ownership.COMMITTED and self.halted == "paused"
        here = self.doing in ("commit", "ask", "serve") and self.attempt == self.session
        return there and here

    @property
    def source_runs(self) -> bool:
        """Whether it runs at the source now."""
        return self.doing != "gone" and self.source.may_run

    @property
    def destination_has_it(self) -> bool:
        """Whether it runs there, or will when the destination is started again."""
        return self.destination_runs or self.home.whole or self.other.whole

    def __str__(self) -> str:
        source = "gone" if self.doing == "gone" else self.source.word
        there = f"process {self.process}" if self.up else "no process"
        task = f", attempt {self.session} {self.destination.word}" if self.session else ""
        if self.up and self.missing:
            task += f", pages missing, {self.halted or 'running'}"
            task += f", holds stream {self.held}" if self.held else ", no stream"
        kept = [
            f"{name} directory: attempt {k.attempt} {'whole' if k.whole else 'taken over'}"
            for name, k in ((HOME, self.home), (OTHER, self.other))
            if k.attempt
        ]
        return (
            f"source: {source} | destination: {there} ({self.directory} directory){task}"
            + "".join(f" | {line}" for line in kept)
        )


class Step(NamedTuple):
    """One thing that happens, in words, and what comes of it; `mishap`: it need not happen."""

    what: str
    state: State
    mishap: bool = False
    by_hand: bool = False  # an operator decided it


class Model:
    """The steps from each state."""

    def __init__(self, rules: Rules | None = None, bounds: Bounds | None = None) -> None:
        self.rules = rules or Rules()
        self.bounds = bounds or Bounds()

    def start(self) -> State:
        """The task runs at the source; the destination has just been started."""
        return State()

    def steps(self, state: State) -> Iterator[Step]:
        """Everything that can happen next."""
        if state.doing != "gone":
            yield from self._source_acts(state)
            yield from self._source_hears(state)
            yield from self._source_fails(state)
        if state.up:
            yield from self._destination_hears(state)
            yield from self._destination_acts(state)
        yield from self._destination_fails(state)

    # -- the tables

    def _source_on(self, state: State, event: Event, **changes: object) -> Iterator[State]:
        """After an event at the source; nothing if the table does not have it."""
        after = self.rules.source.get((state.source, event))
        if after is not None:
            yield replace_state(state, source=after, **changes)

    def _destination_after(self, state: State, event: Event) -> Ownership | None:
        return self.rules.destination.get((state.destination, event))

    # -- the source

    def _call(self, state: State, doing: str, *messages: Message) -> State:
        """The source sends requests and waits for an answer; earlier answers are of no use.

        The connection with the frames of the transfer ends when the source goes on to something
        else.
        """
        under_way = frozenset(m for m in state.requests if m.kind != "pages")
        return state._replace(doing=doing, requests=under_way | set(messages), answers=frozenset())

    def _source_acts(self, state: State) -> Iterator[Step]:
        """What the source does by itself."""
        if state.doing == "idle" and state.source is Ownership.RUNNING:
            if state.attempt < self.bounds.attempts and state.up:
                for lazy in (False, True) if self.bounds.post_copy else (False,):
                    number = state.attempt + 1
                    begun = state._replace(
                        attempt=number, lazy=lazy, served=False, known="", stream=0
                    )
                    kind = "post-copy" if lazy else "pre-copy"
                    yield Step(
                        f"the source begins attempt {number} ({kind})",
                        self._call(begun, "prepare", Message("prepare", number)),
                    )
        if state.doing in ("ask", "serve"):
            # Asked as often as wanted: a question is under way for as long as it is not answered.
            question = Message("abort", state.attempt)
            if state.doing == "ask" and question not in state.requests:
                yield Step(
                    "the source asks what became of the hand-over",
                    self._call(state, "ask", question),
                )
        if state.doing == "ask" and self._surely_over(state):
            for kept in self._source_on(state, Event.KEEP, doing="idle"):
                yield Step(
                    "somebody who knows that the task is lost there says: keep", kept, by_hand=True
                )

    def _surely_over(self, state: State) -> bool:
        """What an operator must know before the source goes back to the freeze."""
        kept = state.home if state.known == HOME else state.other
        ran = state.served or kept.attempt == state.attempt
        still = self.rules.stands_still(
            halted=bool(state.halted), over=state.halted == "for good", held=state.held
        )
        runs = state.up and state.destination is Ownership.COMMITTED and not still
        return ran and not runs and not (state.home.whole or state.other.whole)

    def _source_hears(self, state: State) -> Iterator[Step]:
        """An answer arrives at the source."""
        for answer in state.answers:
            rest = state._replace(answers=state.answers - {answer})
            yield from self._answered(rest, answer)

    def _answered(self, state: State, answer: Answer) -> Iterator[Step]:
        number = state.attempt
        if state.doing == "prepare" and answer.kind == "prepared":
            for frozen in self._source_on(state, Event.FREEZE):
                yield Step(
                    "the destination is prepared; the source sends all pages and freezes the task",
                    self._call(
                        frozen._replace(known=answer.directory, target=answer.process),
                        "transfer",
                        Message("pages", number, answer.process),
                    ),
                )
        elif state.doing == "transfer" and answer.kind == "received":
            yield Step(
                "all pages are there; the source asks for a comparison",
                self._call(state, "verify", Message("verify", number)),
            )
        elif state.doing == "verify" and answer.kind == "equal" and state.lazy:
            yield Step(
                "the memory is equal; the source opens a page stream", self._open(state, "open")
            )
        elif state.doing in ("verify", "open") and answer.kind in ("equal", "opened"):
            for offered in self._source_on(state, Event.SEND_COMMIT):
                yield Step(
                    f"{'the stream is open' if state.lazy else 'the memory is equal'}; "
                    "the source sends Commit",
                    self._call(offered, "commit", Message("commit", number, state.target)),
                )
        elif state.doing == "commit" and answer.kind == "committed":
            yield from self._taken(state, "Commit is answered: taken over")
        elif state.doing == "commit" and answer.kind == "refused":
            for back in self._source_on(state, Event.REFUSED):
                yield Step(
                    "Commit is answered: refused; the source goes on with the task",
                    self._call(back, "idle", Message("abort", number)),
                )
        elif state.doing == "commit" and answer.kind == "unknown":
            yield Step("Commit is answered: no such migration; the source must ask", to_ask(state))
        elif state.doing == "ask" and answer.kind == "fate":
            yield from self._fate_known(state, answer)
        elif state.doing == "serve" and answer.kind == "over":
            for released in self._source_on(state, Event.PAGES_OVER, doing="idle"):
                yield Step("the destination needs no more pages: the source lets go", released)
        elif state.doing == "serve" and answer.kind == "halted":
            for lost in self._source_on(state, Event.LOSE_SIGHT):
                yield Step("the destination stopped the task for good", to_ask(lost))

    def _open(self, state: State, doing: str) -> State:
        """The source opens a page stream, the next one of this attempt."""
        number = state.stream + 1
        opening = Message("open", state.attempt, stream=number)
        return self._call(state, doing, opening)._replace(stream=number)

    def _taken(self, state: State, what: str) -> Iterator[Step]:
        if state.lazy:
            asked = state.doing == "ask"
            for serving in self._source_on(
                state, Event.TAKEN_WITHOUT_PAGES, doing="serve", served=True, answers=frozenset()
            ):
                if not asked:
                    yield Step(f"{what}; the source serves pages", serving)
                elif serving.stream < self.bounds.streams:
                    again = self._open(serving, "serve")
                    yield Step(f"{what}; the source opens the page stream again", again)
                else:
                    yield Step(f"{what}; the source cannot serve it any more", serving)
        else:
            for released in self._source_on(state, Event.TAKEN, doing="idle"):
                yield Step(f"{what}; the source lets go", released)

    def _fate_known(self, state: State, answer: Answer) -> Iterator[Step]:
        if not self.rules.counts(state.known, answer.directory):
            yield Step(
                "the answer is of a destination with another directory: it does not count",
                to_ask(state),
            )
            return
        event = self.rules.fate(answer.says, served=state.served)
        said = f"the destination says: {answer.says.word}"
        if event is Event.TAKEN:
            yield from self._taken(state, said)
        elif event is Event.LOSE_SIGHT:
            for lost in self._source_on(state, event):
                yield Step(f"{said}; the source waits for somebody's word", to_ask(lost))
        else:
            for back in self._source_on(state, event, doing="idle", answers=frozenset()):
                yield Step(f"{said}; the source goes on with the task", back)

    def _source_fails(self, state: State) -> Iterator[Step]:
        """It waits in vain, is told to abort, or dies."""
        if state.doing in ("prepare", "transfer", "verify", "open"):
            for back in self._source_on(state, Event.GIVE_UP):
                yield Step(
                    f"the source gives up at {state.doing} and goes on with the task",
                    self._call(back, "idle", Message("abort", state.attempt)),
                )
        elif state.doing == "commit":
            yield Step("no answer to Commit: the source must ask", to_ask(state))
        elif state.doing == "serve":
            for lost in self._source_on(state, Event.LOSE_SIGHT):
                yield Step("the source hears no more of the destination", to_ask(lost))
            if state.stream < self.bounds.streams:
                again = self._open(state, "serve")
                yield Step("the page stream breaks; the source opens another one", again)
        if state.source_crashes < self.bounds.source_crashes:
            yield Step(
                "the source dies, and what it had with it",
                state._replace(
                    doing="gone", answers=frozenset(), source_crashes=state.source_crashes + 1
                ),
                mishap=True,
            )

    # -- the destination

    def _destination_hears(self, state: State) -> Iterator[Step]:
        """A request arrives; it stays under way, and may arrive once more."""
        for message in state.requests:
            if message.process not in (0, state.process):
                if message.kind == "commit":
                    yield Step(
                        f"commit of attempt {message.attempt} arrives at another process: unknown",
                        self._answer(state, message, Answer("unknown")),
                    )
                continue
            known = state.session == message.attempt
            what = f"{message.kind} of attempt {message.attempt} arrives"
            if message.kind == "prepare":
                yield from self._prepare(state, message, what)
            elif message.kind == "pages":
                if known and self._destination_after(state, Event.FRAME) is not None:
                    there = state._replace(complete=True)
                    yield Step(what, self._answer(there, message, Answer("received")))
            elif message.kind == "verify":
                after = self._destination_after(state, Event.EQUAL)
                if known and state.complete and after is not None:
                    there = state._replace(destination=after)
                    yield Step(what, self._answer(there, message, Answer("equal")))
            elif message.kind == "open":
                yield from self._opened(state, message)
            elif message.kind == "commit":
                yield from self._commit(state, message, what)
            elif message.kind == "abort":
                yield from self._abort(state, message, what)

    def _answer(self, state: State, message: Message, answer: Answer) -> State:
        """The answer counts if the source still waits for it."""
        waits = {"pages": "transfer", "abort": "ask"}.get(message.kind, message.kind)
        if state.doing == waits and state.attempt == message.attempt:
            return state._replace(answers=state.answers | {answer})
        return state

    def _prepare(self, state: State, message: Message, what: str) -> Iterator[Step]:
        """Makes room, unless the task of another migration runs here; an unfinished one goes."""
        if state.session == message.attempt:
            if state.destination is Ownership.RECEIVING and not state.complete:
                yield Step(what, self._answer(state, message, _prepared(state)))
            return
        if state.destination in (Ownership.COMMITTED, Ownership.LOST):
            if state.destination is Ownership.COMMITTED:
                return
            state = state.keep(Kept())
        fresh = forgotten(state)
        after = self._destination_after(fresh, Event.PREPARE)
        if after is not None:
            there = fresh._replace(destination=after, session=message.attempt)
            yield Step(what, self._answer(there, message, _prepared(there)))

    def _opened(self, state: State, message: Message) -> Iterator[Step]:
        """A stream is opened once, however late; the newest that arrives is the one held."""
        there = state._replace(requests=state.requests - {message})
        if state.session != message.attempt or state.destination not in (
            Ownership.VERIFIED,
            Ownership.COMMITTED,
        ):
            return
        there = there._replace(held=message.stream)
        yield Step(
            f"page stream {message.stream} of attempt {message.attempt} is opened",
            self._answer(there, message, Answer("opened")),
        )

    def _commit(self, state: State, message: Message, what: str) -> Iterator[Step]:
        if state.session != message.attempt:
            yield Step(f"{what}: unknown", self._answer(state, message, Answer("unknown")))
            return
        after = self._destination_after(state, Event.COMMIT)
        if state.destination is Ownership.COMMITTED and after is Ownership.COMMITTED:
            yield Step(f"{what}, again", self._answer(state, message, Answer("committed")))
            return
        if after is not None:
            there = state._replace(destination=after)
            if after is Ownership.COMMITTED:
                lazy = state.lazy and state.attempt == message.attempt
                there = there._replace(missing=lazy).keep(Kept(message.attempt, not lazy))
            yield Step(f"{what}: taken over", self._answer(there, message, Answer("committed")))
        # It may be refused all the same: no room, a full disk.
        refused = self._destination_after(state, Event.REFUSE)
        if refused is not None:
            there = state._replace(destination=refused)
            yield Step(
                f"{what}: refused", self._answer(there, message, Answer("refused")), mishap=True
            )

    def _abort(self, state: State, message: Message, what: str) -> Iterator[Step]:
        if state.session != message.attempt:
            # A destination that lost a task says so only of that one.
            says = Ownership.NONE
            yield Step(
                f"{what}: unknown",
                self._answer(state, message, Answer("fate", says, state.directory)),
            )
            return
        after = self._destination_after(state, Event.ABORT)
        if after is not None:
            there = state._replace(destination=after)
            if after is Ownership.ABORTED and state.destination is Ownership.COMMITTED:
                there = there.keep(Kept())
            yield Step(
                f"{what}: {after.word}",
                self._answer(there, message, Answer("fate", after, state.directory)),
            )

    def _destination_acts(self, state: State) -> Iterator[Step]:
        """Pages of a post-copy, which come through a stream that the source holds open."""
        if state.destination is not Ownership.COMMITTED:
            return
        serves = state.doing == "serve" and state.attempt == state.session
        hears = serves and state.held == state.stream != 0
        if state.missing and state.halted != "for good":
            if hears and state.held not in state.pages:
                yield Step(
                    f"asked over stream {state.held}, the source sends pages",
                    state._replace(pages=state.pages | {state.held}),
                )
            for stream in state.pages:
                yield from self._pages_arrive(state, stream)
            if state.held:
                yield Step(
                    "the page stream ends at the destination", state._replace(held=0), mishap=True
                )
            if not state.halted or state.held:
                yield Step(
                    "the destination hears nothing, gives the stream up and stands still",
                    state._replace(halted="paused", held=0),
                    mishap=True,
                )
        elif hears:
            word = Answer("halted" if state.halted else "over")
            if word not in state.answers:
                yield Step(
                    f"the destination tells the source: {word.kind}",
                    state._replace(answers=state.answers | {word}),
                )

    def _pages_arrive(self, state: State, stream: int) -> Iterator[Step]:
        if not self.rules.page_counts(state.held, stream):
            return
        rest = state._replace(pages=state.pages - {stream})
        what = f"pages arrive over stream {stream}"
        if state.halted:
            yield Step(f"{what}: the task goes on", rest._replace(halted=""))
        whole = rest._replace(missing=False, halted="").keep(Kept(state.session, True))
        yield Step(f"{what}: all are there", whole)
        yield Step(f"{what}: one is wrong", rest._replace(halted="for good"), mishap=True)

    def _destination_fails(self, state: State) -> Iterator[Step]:
        """Its process dies, or one is started."""
        if state.up:
            if state.process <= self.bounds.destination_crashes:
                yield Step("the destination's process dies", dead(state), mishap=True)
            if not self._wanted(state, state.directory) and not state.destination.may_run:
                yield Step(
                    f"somebody stops the destination that has the {state.directory} directory",
                    dead(state),
                )
            return
        for directory in (HOME, OTHER):
            wanted = self._wanted(state, directory)
            if not wanted and state.process > self.bounds.destination_crashes:
                continue
            begun = state._replace(up=True, process=state.process + 1, directory=directory)
            yield Step(
                f"the destination is started with the {directory} directory",
                self._recover(begun),
                mishap=not wanted,
            )

    @staticmethod
    def _wanted(state: State, directory: str) -> bool:
        """Whether the destination should be started with that directory: its task is there."""
        kept = state.home if directory == HOME else state.other
        if state.home.whole or state.other.whole:
            return kept.whole
        if state.doing == "ask":
            return directory == state.known
        return directory == HOME

    def _recover(self, state: State) -> State:
        kept = state.kept
        if not kept.attempt:
            return state
        event = Event.FIND_COMMITTED if kept.whole else Event.FIND_TAKEN
        after = self._destination_after(state, event)
        if after is None:
            return state
        return state._replace(destination=after, session=kept.attempt, complete=kept.whole)


def _prepared(state: State) -> Answer:
    return Answer("prepared", state.destination, state.directory, state.process)


def replace_state(state: State, **changes: object) -> State:
    """`State._replace` with names that are known only at run time."""
    return state._replace(**changes)  # type: ignore[arg-type]


def to_ask(state: State) -> State:
    """The source asks from now on; what it waited for before is of no use."""
    question = Message("abort", state.attempt)
    return state._replace(doing="ask", answers=frozenset(), requests=state.requests - {question})


def forgotten(state: State) -> State:
    """Without what the destination's process knew of a task."""
    return state._replace(
        destination=Ownership.NONE,
        session=0,
        complete=False,
        missing=False,
        halted="",
        held=0,
        pages=frozenset(),
    )


def dead(state: State) -> State:
    """Without the destination's process; what was under way to it in particular is gone as well."""
    return forgotten(state)._replace(
        up=False,
        requests=frozenset(
            m for m in state.requests if m.kind == "commit" or m.process != state.process
        ),
    )
