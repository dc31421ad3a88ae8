"""What a scenario may ask of a workload: one model per ``kind``, told apart by that key.

The keys are the knobs that people know from YCSB (Zipf constant, hot set), redis-benchmark (fork
snapshots), stress-ng and mig_mon (rate, size of a write, sequential or random). Values that depend
on the page or memory size (a write larger than a page, an arena larger than memory) are checked
when the workload is built, since only then both are known.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from livemigration.units import parse_rate, parse_size, parse_time_ns
from livemigration.workload.script_text import parse_script

_ANY_PAGE_SIZE = 4096  # a rate is well formed or not, whatever the page size


def _size(value: object) -> object:
    """Bytes of a size; leaves to pydantic what is neither text nor number."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return parse_size(value)
    return value


def _positive_rate(text: str) -> str:
    if parse_rate(text, _ANY_PAGE_SIZE) == 0:
        raise ValueError(f'{text!r} would never write anything; for that use kind = "idle"')
    return text.strip()


def _positive_time(text: str) -> str:
    if parse_time_ns(text) == 0:
        raise ValueError(f'{text!r} is no time at all; write a duration like "500ms"')
    return text.strip()


def _eights(size: int) -> int:
    if size % 8:
        raise ValueError(f"{size} bytes is not a whole number of 8-byte words; use e.g. 64")
    return size


def _tuple(value: object) -> object:
    """TOML and JSON have lists only."""
    return tuple(value) if isinstance(value, list) else value


def _operations(text: str) -> str:
    """A script whose lines are operations; sizes are looked at when the page size is known."""
    parse_script(text, _ANY_PAGE_SIZE)
    return text


def _some_operations(text: str) -> str:
    if not parse_script(text, _ANY_PAGE_SIZE):
        raise ValueError('has no operation; write at least one, such as "write 0 0 16"')
    return text


def _not_empty(text: str) -> str:
    if not text.strip():
        raise ValueError("empty; name a trace file that `predump workload record` wrote")
    return text


Size = Annotated[int, BeforeValidator(_size), Field(ge=0)]
WriteSize = Annotated[int, BeforeValidator(_size), Field(ge=8, le=65536), AfterValidator(_eights)]
Rate = Annotated[str, AfterValidator(_positive_rate)]
Duration = Annotated[str, AfterValidator(_positive_time)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Theta = Annotated[float, Field(ge=0.0, le=5.0)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ContentSpec(_Model):
    """What the written bytes look like."""

    content: Literal["random", "text", "zero"] = Field(
        "random",
        description='"random" (does not compress), "text" (like it) or "zero" (7 of 8 words are 0)',
    )
    compressibility: Probability | None = Field(
        None, description="instead of content: share of the 8-byte words that are zero, 0 to 1"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.compressibility is not None and self.content != "random":
            raise ValueError(
                "content and compressibility say the same thing in two ways; give one of them"
            )
        return self


class _Writes(_Model):
    """A stream of writes."""

    rate: Rate = Field(
        "20000 pages/s", description="writes per second; bytes per second count whole pages"
    )
    write_size: WriteSize = Field(
        64, description="bytes of one write, a multiple of 8, at most a page"
    )

    def writes_per_second(self, page_size: int) -> Fraction:
        """Operations per second, exactly."""
        return parse_rate(self.rate, page_size)


class _Spread(_Writes):
    """Writes over a part of the memory."""

    working_set: Size = Field(0, description="size of the memory that is written; 0: all of it")


class _Uniform(_Spread):
    kind: Literal["uniform"]


class _Zipf(_Spread):
    kind: Literal["zipf"]
    theta: Theta = Field(0.99, description="Zipf constant: rank r has weight r^-theta")
    scramble: bool = Field(True, description="popular pages lie anywhere, not side by side")


class _Hotspot(_Spread):
    kind: Literal["hotspot"]
    hot_fraction: Probability = Field(0.2, description="share of the pages that is hot")
    hot_probability: Probability = Field(0.8, description="share of the writes that go there")


class _Sequential(_Spread):
    kind: Literal["sequential"]


class _Timed(_Model):
    duration: Duration = Field(description='how long this phase lasts, e.g. "500ms"')

    @property
    def duration_ns(self) -> int:
        """The phase's length in nanoseconds."""
        return parse_time_ns(self.duration)


class UniformSpec(_Uniform, ContentSpec):
    """Every page of the working set is as likely as any other."""


class ZipfSpec(_Zipf, ContentSpec):
    """Few pages take most writes, by Zipf's law; scrambled as in YCSB."""


class HotspotSpec(_Hotspot, ContentSpec):
    """A hot set takes most of the writes (YCSB's hotspot: 20 % of the data, 80 % of them)."""


class SequentialSpec(_Sequential, ContentSpec):
    """Page after page, round and round."""


class UniformPhase(_Uniform, _Timed):
    """A phase of uniform writes."""


class ZipfPhase(_Zipf, _Timed):
    """A phase of Zipf-distributed writes."""


class HotspotPhase(_Hotspot, _Timed):
    """A phase with a hot set."""


class SequentialPhase(_Sequential, _Timed):
    """A phase of sequential writes; goes on where its last turn stopped."""


class IdlePhase(_Timed):
    """A phase without writes."""

    kind: Literal["idle"]


PhaseSpec = Annotated[
    UniformPhase | ZipfPhase | HotspotPhase | SequentialPhase | IdlePhase,
    Field(discriminator="kind"),
]


class PhasedSpec(ContentSpec):
    """Phases in turn, again and again: bursts, batch jobs, day and night."""

    kind: Literal["phased"]
    phases: Annotated[tuple[PhaseSpec, ...], BeforeValidator(_tuple)] = Field(
        min_length=1, description="the phases, in order"
    )


class IdleSpec(ContentSpec):
    """A task that only waits."""

    kind: Literal["idle"]


class AppendHeapSpec(_Writes, ContentSpec):
    """A growing, collected heap: brk and mmapped arenas come, move and go."""

    kind: Literal["append-heap"]
    write_size: WriteSize = Field(256, description="bytes of one allocation, a multiple of 8")
    arena: Size = Field(0, description="size of one arena; 0: 1/64 of memory")
    mutate: Probability = Field(
        0.25, description="share of the operations that write to an older arena instead"
    )


class ForkCowSpec(_Writes, ContentSpec):
    """A store that forks snapshot children, as Redis does for BGSAVE, and writes on."""

    kind: Literal["fork-cow"]
    access: Literal["uniform", "zipf"] = Field("uniform", description="how the parent writes")
    theta: Theta = Field(0.99, description='Zipf constant for access = "zipf"')
    shared: Size = Field(0, description="size of the shared segment; 0: 1/16 of memory")
    shared_probability: Probability = Field(
        0.05, description="share of the parent's writes that go to the shared segment"
    )
    fork_every: int = Field(20000, ge=1, description="operations between forks")
    child_life: int = Field(8000, ge=2, description="operations of the parent that a child lives")
    child_writes: int = Field(
        2, ge=0, le=4096, description="private and shared pages a child writes at each of its steps"
    )

    @model_validator(mode="after")
    def _few_children(self) -> Self:
        if self.child_life > MOST_CHILDREN * self.fork_every:
            raise ValueError(
                f"child_life = {self.child_life} with fork_every = {self.fork_every} has more than "
                f"{MOST_CHILDREN} children alive at once; child_life must be at most "
                f"{MOST_CHILDREN * self.fork_every}"
            )
        return self


class SwapPressureSpec(_Spread, ContentSpec):
    """A task short of memory: pages are swapped out and in, and change protection."""

    kind: Literal["swap-pressure"]
    window: Size = Field(0, description="size of the window swapped out at a time; 0: 1/32")
    every: int = Field(1024, ge=1, description="operations between two windows")
    reads: int = Field(32, ge=0, le=65536, description="pages read (swapped in) at each window")
    protect_every: int = Field(
        4, ge=0, description="windows between two changes of protection; 0: never"
    )


class TraceSpec(ContentSpec):
    """The stores of a real program, recorded by `predump workload record`."""

    kind: Literal["trace"]
    file: Annotated[str, AfterValidator(_not_empty)] = Field(
        description="the trace, relative to the scenario file"
    )
    speed: float = Field(
        1.0, gt=0.0, le=1e6, description="2.0 replays twice as fast as it was recorded"
    )
    loop: bool = Field(True, description="begin again at its end")


class ScriptSpec(ContentSpec):
    """Operations on memory, listed one by one."""

    kind: Literal["script"]
    setup: Annotated[str, AfterValidator(_operations)] = Field(
        "", description="operations before round 0, one a line"
    )
    script: Annotated[str, AfterValidator(_some_operations)] = Field(
        description="operations while the task runs, one a line, again and again"
    )
    every: Duration = Field("1ms", description="time from one operation to the next")
    write_size: WriteSize = Field(
        64, description="bytes that an operation writes to each page, a multiple of 8"
    )
    loop: bool = Field(True, description="begin again at its end")

    @property
    def every_ns(self) -> int:
        """Time between operations in nanoseconds."""
        return parse_time_ns(self.every)


MOST_CHILDREN = 8
"""Snapshot children of fork-cow alive at once."""

WorkloadSpec = Annotated[
    UniformSpec
    | ZipfSpec
    | HotspotSpec
    | SequentialSpec
    | PhasedSpec
    | IdleSpec
    | AppendHeapSpec
    | ForkCowSpec
    | SwapPressureSpec
    | ScriptSpec
    | TraceSpec,
    Field(discriminator="kind"),
]
