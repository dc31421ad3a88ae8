"""What a task and its migration are made of, as both hosts understand it.

A scenario file is these models written as TOML; a request to a node is the same models as a
protobuf Struct (`to_struct`, `from_struct`). Everything is checked here, once, so that nodes can
rely on it: unknown keys and wrong types are refused, and so are sizes no model could have.

Rates, times and bandwidths stay the text that people wrote, checked; properties give the integers
(``latency_ns``, ``bandwidth_bps``, ...) that the code computes with.
"""

import re
from collections.abc import Mapping
from math import inf
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from livemigration.costs import CostSpec
from livemigration.spec_errors import SpecError, first_line
from livemigration.telemetry.address import parse_broker_url
from livemigration.units import format_size, parse_bandwidth, parse_size, parse_time_ns
from livemigration.workload.script_text import (
    CONT_PAGES,
    ScriptTextError,
    Step,
    parse_script,
    peak_pages,
)
from livemigration.workload.spec import ScriptSpec, WorkloadSpec

PAGE_SIZES = (4096, 16384, 65536)
LARGEST_PAGE = max(PAGE_SIZES)
LARGEST_MEMORY = 64 * 2**30
LARGEST_SEED = 2**53 - 1
"""Struct carries numbers as doubles; larger seeds would change on their way to the other host."""
MOST_ROUNDS = 999
LEAST_PATIENCE_NS = 100_000_000
LARGEST_BATCH = 2**20
_WORKLOAD_LIMITS = {
    "write_size": "page_size",
    "working_set": "memory",
    "arena": "memory",
    "shared": "memory",
    "window": "memory",
}
"""Sizes in a workload that cannot be larger than another key."""
HOST_WORKLOADS = ("uniform", "zipf", "hotspot", "sequential", "phased", "idle")
"""What a task in the host's own memory can do: write to one mapping, and nothing else."""
_FOLIO_SIZE = re.compile(r"[1-9][0-9]{0,6}kB")
_MODULE_AND_CLASS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def _checked_time(text: str) -> str:
    parse_time_ns(text)
    return text.strip()


def _patient(text: str) -> str:
    if parse_time_ns(text) < LEAST_PATIENCE_NS:
        raise ValueError(
            f'{text!r} does not tell a lost host from a busy one; write at least "100ms"'
        )
    return text


def _checked_bandwidth(text: str) -> str:
    parse_bandwidth(text)
    return text.strip()


def _size(value: object) -> object:
    """Bytes of a size; leaves to pydantic what is neither text nor number."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return parse_size(value)
    return value


def _names(value: object) -> object:
    """Hunk names from a list, or from one text with commas (handy with --set)."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return tuple(value) if isinstance(value, list) else value


def _known_hunks(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names without repeats, in a fixed order; ValueError for one that is no hunk's."""
    if not names:
        return names
    # Only a run with a hunk off needs the catalogue; importing the model takes a while.
    from mm_model.hunks import check_hunks_off

    return tuple(sorted(check_hunks_off(names)))


def _broker_url(url: str) -> str:
    if url:
        parse_broker_url(url)
    return url


def _module_and_class(kind: str) -> str:
    if not _MODULE_AND_CLASS.fullmatch(kind):
        raise ValueError(f'{kind!r} names no class; write "module:Class"')
    return kind


def _check_plain(key: str, value: object) -> None:
    """ValueError for what would not be the same on the other side of a protobuf Struct."""
    if isinstance(value, list):
        for item in value:
            _check_plain(key, item)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            _check_plain(f"{key}.{name}", item)
    elif isinstance(value, int) and abs(value) > LARGEST_SEED:
        raise ValueError(f"{key}: {value} is too large; write at most {LARGEST_SEED}")
    elif not isinstance(value, str | int | float) or value in (inf, -inf) or value != value:
        raise ValueError(f"{key}: {value} cannot be handed to a policy; write text or a number")


Size = Annotated[int, BeforeValidator(_size)]
Time = Annotated[str, AfterValidator(_checked_time)]
Bandwidth = Annotated[str, AfterValidator(_checked_bandwidth)]


class Spec(BaseModel):
    """Base of all specifications: immutable, strict about types, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class CpuSpec(Spec):
    """The processor of both hosts."""

    dbm: bool = Field(
        default=True,
        description="hardware management of the dirty state (FEAT_HAFDBS): a first write to a "
        "writable clean page needs no fault",
    )


class KernelSpec(Spec):
    """The kernel whose behaviour the model follows where versions differ."""

    profile: Literal["6.1", "6.12", "seed"] = Field(
        default="6.12",
        description='kernel version, or "seed": the tree that the patch was made for',
    )


ThpMode = Literal["always", "madvise", "never"]


class ThpSpec(Spec):
    """Transparent huge pages, as below /sys/kernel/mm/transparent_hugepage on both hosts."""

    enabled: ThpMode = Field(
        default="madvise", description="where faults of anonymous memory may use PMD-sized pages"
    )
    hugepages: dict[str, ThpMode] = Field(
        default={},
        description="the same for other sizes (mTHP), by name: hugepages.64kB is the setting "
        "hugepages-64kB/enabled; hugepages.cont is the size of a contiguous block",
    )

    @field_validator("hugepages")
    @classmethod
    def _sizes(cls, hugepages: dict[str, ThpMode]) -> dict[str, ThpMode]:
        for name in hugepages:
            if name != "cont" and not _FOLIO_SIZE.fullmatch(name):
                raise ValueError(f"{name!r} is not a size as the kernel writes it, such as 64kB")
        return dict(sorted(hugepages.items()))

    def sizes(self, page_size: int) -> tuple[tuple[int, ThpMode], ...]:
        """The other sizes in KiB, with their modes."""
        cont = f"{CONT_PAGES[page_size] * page_size // 1024}kB"
        return tuple(
            (int((cont if name == "cont" else name).removesuffix("kB")), mode)
            for name, mode in self.hugepages.items()
        )


class HunksSpec(Spec):
    """Which hunks of the soft-dirty patch are left out, to see what each one is for."""

    off: Annotated[tuple[str, ...], BeforeValidator(_names), AfterValidator(_known_hunks)] = Field(
        default=(),
        description="names as `predump hunks` lists them; a list, or one text with commas",
    )


class SourceSpec(Spec):
    """What the task's memory holds before round 0."""

    images: str = Field(default="", description="a CRIU image directory to start from; empty: none")
    populate: bool = Field(
        default=True,
        description="without images: memory is written once, with content, before round 0",
    )


class HostSpec(Spec):
    """How the source's own kernel is asked, with tracker "host"."""

    method: Literal["auto", "wp-async", "soft-dirty"] = Field(
        default="auto",
        description='"wp-async": userfaultfd and PAGEMAP_SCAN (Linux 6.7 on x86-64, 6.10 on '
        'arm64); "soft-dirty": clear_refs and pagemap; "auto": the first of them that the kernel '
        "has",
    )
    forget: int = Field(
        default=0,
        ge=0,
        description="a drill: writes to so many pages, from the first one on, are not told",
    )


class FixedPolicySpec(Spec):
    """A fixed number of pre-dumps after round 0, then the final round."""

    kind: Literal["fixed"] = "fixed"
    rounds: int = Field(default=4, ge=0, le=MOST_ROUNDS, description="pre-dumps after round 0")


class ThresholdPolicySpec(Spec):
    """LXD/Incus: stop when enough of the memory did not need to be sent again."""

    kind: Literal["threshold"] = "threshold"
    max_rounds: int = Field(default=10, ge=0, le=MOST_ROUNDS, description="pre-dumps at most")
    goal_percent: int = Field(
        default=70,
        ge=0,
        le=100,
        description="freeze when more than this percent of the pages was there already",
    )


class DowntimeLimitPolicySpec(Spec):
    """QEMU: stop when what is left can be sent within the downtime limit."""

    kind: Literal["downtime-limit"] = "downtime-limit"
    downtime_limit: Time = Field(default="300ms", description="longest transfer of the final round")
    max_rounds: int = Field(default=30, ge=0, le=MOST_ROUNDS, description="pre-dumps at most")

    @property
    def downtime_limit_ns(self) -> int:
        """The limit in nanoseconds."""
        return parse_time_ns(self.downtime_limit)


class AutoConvergePolicySpec(Spec):
    """QEMU's auto-converge: the downtime limit, and a task that dirties too fast is slowed down."""

    kind: Literal["auto-converge"] = "auto-converge"
    downtime_limit: Time = Field(default="300ms", description="longest transfer of the final round")
    max_rounds: int = Field(default=30, ge=0, le=MOST_ROUNDS, description="pre-dumps at most")
    trigger_percent: int = Field(
        default=50,
        ge=1,
        le=100,
        description="too much: more than this percent of the bytes that a round sent was dirtied",
    )
    throttle_initial: int = Field(
        default=20, ge=1, le=99, description="first step, in percent of the task's time"
    )
    throttle_increment: int = Field(default=10, ge=1, le=99, description="every further step")
    throttle_max: int = Field(default=99, ge=1, le=99, description="never slower than this")

    @property
    def downtime_limit_ns(self) -> int:
        """The limit in nanoseconds."""
        return parse_time_ns(self.downtime_limit)


class PhaulPolicySpec(Spec):
    """p.haul: little left, growing rounds, or enough of them."""

    kind: Literal["phaul"] = "phaul"
    max_rounds: int = Field(
        default=8, ge=0, le=MOST_ROUNDS, description="pre-dumps after round 0 at most"
    )
    few_pages: int = Field(default=64, ge=0, description="so few pages in a round are few enough")
    most_growth_percent: int = Field(
        default=10, ge=0, description="freeze when a round sends over this percent more pages"
    )


class XenPolicySpec(Spec):
    """Xen: few pages dirty, enough rounds, or enough sent."""

    kind: Literal["xen"] = "xen"
    max_rounds: int = Field(default=5, ge=0, le=MOST_ROUNDS, description="pre-dumps at most")
    few_pages: int = Field(default=50, ge=0, description="freeze when fewer than so many are dirty")
    most_times: int = Field(
        default=3, ge=0, description="at most so many times the memory is sent; 0: no such rule"
    )


class StopAndCopyPolicySpec(Spec):
    """No pre-dump: everything is sent while the task is frozen."""

    kind: Literal["stop-and-copy"] = "stop-and-copy"


class UserPolicySpec(Spec):
    """A policy of the user's own: a Python class, and the keys that its constructor takes."""

    model_config = ConfigDict(extra="allow")

    kind: Annotated[str, AfterValidator(_module_and_class)] = Field(
        description='"module:Class", a module beside the scenario file or an installed one'
    )
    module_sha256: str = Field(
        default="",
        pattern=r"^([0-9a-f]{64})?$",
        description="what the module holds; set when the scenario is read, so that results say it",
    )

    @model_validator(mode="after")
    def _plain_options(self) -> Self:
        for key, value in self.options.items():
            _check_plain(key, value)
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The further keys of the table: what the class is constructed with."""
        return {key: _whole_floats_to_int(value) for key, value in (self.model_extra or {}).items()}


class LazySpec(Spec):
    """What a policy says of pages that come after the task goes on at the destination."""

    prefetch: Literal["none", "sequential", "around-faults"] = Field(
        default="around-faults",
        description="what is fetched beside the pages that the task waits for: nothing, page after "
        "page, or what lies around the last faults",
    )
    batch: Size = Field(
        default=0,
        ge=0,
        le=LARGEST_BATCH,
        description="page bytes fetched at once, unasked by the task (one page at least), which a "
        "fault may have to wait for; 0: what the link carries in a millisecond",
    )
    pivots: int = Field(
        default=7, ge=1, le=64, description="around-faults: so many faults are fetched around"
    )
    lost_after: Annotated[Time, AfterValidator(_patient)] = Field(
        default="10s",
        description="a source that is away for longer is lost, and the task stops at the first "
        "page that is missing",
    )

    @property
    def lost_after_ns(self) -> int:
        """The patience in nanoseconds."""
        return parse_time_ns(self.lost_after)

    def batch_bytes(self, bandwidth_bps: int) -> int:
        """Page bytes of a batch on a link of so many bit/s (0: unlimited)."""
        if self.batch:
            return self.batch
        carried = bandwidth_bps // 8 // 1000
        return min(carried, LARGEST_BATCH) if bandwidth_bps else LARGEST_BATCH


class PostCopyPolicySpec(LazySpec):
    """The task goes on at the destination at once, and its pages come when it needs them."""

    kind: Literal["post-copy"] = "post-copy"


class HybridPolicySpec(LazySpec):
    """Pre-dumps first, then post-copy for what they left."""

    kind: Literal["hybrid"] = "hybrid"
    rounds: int = Field(
        default=1, ge=0, le=MOST_ROUNDS, description="pre-dumps after round 0 at most"
    )
    downtime_limit: Time = Field(
        default="0ms", description="what can be sent in this time is sent frozen, without post-copy"
    )
    least_gain_percent: int = Field(
        default=0,
        ge=0,
        le=100,
        description="a round that leaves not so many percent fewer dirty pages than it sent is the "
        "last before post-copy; 0: no such rule",
    )

    @property
    def downtime_limit_ns(self) -> int:
        """The limit in nanoseconds."""
        return parse_time_ns(self.downtime_limit)


ReadyPolicySpec = Annotated[
    FixedPolicySpec
    | ThresholdPolicySpec
    | DowntimeLimitPolicySpec
    | AutoConvergePolicySpec
    | PhaulPolicySpec
    | XenPolicySpec
    | StopAndCopyPolicySpec
    | PostCopyPolicySpec
    | HybridPolicySpec,
    Field(discriminator="kind"),
]


def _whose_policy(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return "own" if isinstance(kind, str) and ":" in kind else "ready"


PolicySpec = Annotated[
    Annotated[ReadyPolicySpec, Tag("ready")] | Annotated[UserPolicySpec, Tag("own")],
    Discriminator(_whose_policy),
]


class RawEncodingSpec(Spec):
    """Pages travel as they are."""

    kind: Literal["raw"] = "raw"


class ZstdEncodingSpec(Spec):
    """Pages of a frame are compressed together by zstd."""

    kind: Literal["zstd"] = "zstd"
    level: int = Field(default=1, ge=1, le=19, description="zstd's level")


class Lz4EncodingSpec(Spec):
    """Pages of a frame are compressed together by LZ4's fast mode."""

    kind: Literal["lz4"] = "lz4"


class DeltaEncodingSpec(Spec):
    """QEMU's xbzrle: of pages that were sent before, only what changed; the others raw."""

    kind: Literal["delta"] = "delta"
    cache: Size = Field(
        default=64 * 2**20,
        ge=LARGEST_PAGE,
        le=LARGEST_MEMORY,
        description="memory at each host for the versions of pages that were sent last",
    )
    codec: Literal["run-length", "zstd", "lz4"] = Field(
        default="run-length", description="how the changes are written"
    )
    level: int = Field(default=1, ge=1, le=19, description='zstd\'s level, for codec "zstd"')


class AutoEncodingSpec(Spec):
    """Each page raw, zstd, lz4 or delta: the mix by which a frame is through in the least time."""

    kind: Literal["auto"] = "auto"
    cache: Size = Field(
        default=64 * 2**20,
        ge=LARGEST_PAGE,
        le=LARGEST_MEMORY,
        description="memory at each host for the versions of pages that were sent last",
    )
    level: int = Field(default=1, ge=1, le=19, description="zstd's level")


EncodingSpec = Annotated[
    RawEncodingSpec | ZstdEncodingSpec | Lz4EncodingSpec | DeltaEncodingSpec | AutoEncodingSpec,
    Field(discriminator="kind"),
]


def lazy_of(policy: PolicySpec) -> LazySpec:
    """What a policy says of lazy pages; for one that says nothing, the defaults."""
    return policy if isinstance(policy, LazySpec) else PostCopyPolicySpec()


class LinkSpec(Spec):
    """The network between the hosts."""

    bandwidth: Bandwidth = Field(default="1Gbit/s", description='bandwidth, or "unlimited"')
    latency: Time = Field(default="100us", description="one-way delay")

    @property
    def bandwidth_bps(self) -> int:
        """Bits per second; 0 means unlimited."""
        return parse_bandwidth(self.bandwidth)

    @property
    def latency_ns(self) -> int:
        """One-way delay in nanoseconds."""
        return parse_time_ns(self.latency)


class PatienceSpec(Spec):
    """How long the source waits for a destination, in real time on either clock."""

    answer: Annotated[Time, AfterValidator(_patient)] = Field(
        default="30s",
        description="a destination that gives no answer, or takes no page, for so long is lost",
    )
    reconnect: Annotated[Time, AfterValidator(_patient)] = Field(
        default="5s",
        description="how long a destination whose connection broke is looked for",
    )
    settle: Annotated[Time, AfterValidator(_patient)] = Field(
        default="30s",
        description="how long it is asked what became of a hand-over that it did not answer",
    )

    @property
    def answer_ns(self) -> int:
        """Of `answer`, in nanoseconds."""
        return parse_time_ns(self.answer)

    @property
    def reconnect_ns(self) -> int:
        """Of `reconnect`, in nanoseconds."""
        return parse_time_ns(self.reconnect)

    @property
    def settle_ns(self) -> int:
        """Of `settle`, in nanoseconds."""
        return parse_time_ns(self.settle)


class VerifySpec(Spec):
    """How the destination's memory is compared with the source's."""

    mode: Literal["digest", "bytes"] = Field(
        default="digest", description='digests made independently, or "bytes": the memory itself'
    )


class RecordSpec(Spec):
    """What results say beyond totals."""

    pages: bool = Field(
        default=False, description="for every round, where in memory the pages are that it sends"
    )
    bins: int = Field(
        default=96, ge=8, le=1024, description="into about so many bins of addresses at most"
    )


class TelemetrySpec(Spec):
    """Where progress is published."""

    mqtt: Annotated[str, AfterValidator(_broker_url)] = Field(
        default="", description='a broker, "mqtt://host:1883"; empty: none'
    )


class _StructSpec(Spec):
    """A specification that travels between hosts."""

    def to_struct(self) -> dict[str, Any]:
        """Plain dict of str, bool, numbers, lists and dicts: JSON, or a protobuf Struct."""
        return self.model_dump(mode="json")

    @classmethod
    def from_struct(cls, struct: Mapping[str, Any]) -> Self:
        """The specification in ``struct``; whole floats count as integers (Struct has no int).

        Raises SpecError (a ValueError) with one line ``key: what is wrong, what is allowed``.
        """
        try:
            return cls.model_validate(_whole_floats_to_int(dict(struct)))
        except ValidationError as error:
            raise SpecError(first_line(error, cls)) from error


class TaskSpec(_StructSpec):
    """The task that a source node runs: its memory, its machine and what it does all day."""

    seed: int = Field(default=1, ge=0, le=LARGEST_SEED, description="all randomness comes from it")
    page_size: Annotated[Literal[4096, 16384, 65536], BeforeValidator(_size)] = Field(
        default=4096, description="bytes per page: 4096, 16384 or 65536"
    )
    memory: Size = Field(
        default=256 * 2**20,
        description="size of the task's memory in bytes, or a size like 256MiB",
    )
    tracker: Literal["soft-dirty", "uffd-wp", "host"] = Field(
        default="soft-dirty",
        description="how written pages are found: in the model by soft-dirty or by userfaultfd "
        "write-protection, or by the kernel of the source's host in real memory",
    )
    cpu: CpuSpec = Field(default=CpuSpec(), description="the processor")
    kernel: KernelSpec = Field(default=KernelSpec(), description="the kernel")
    thp: ThpSpec = Field(default=ThpSpec(), description="transparent huge pages")
    hunks: HunksSpec = Field(
        default=HunksSpec(), description="hunks of the patch that are left out"
    )
    host: HostSpec = Field(
        default=HostSpec(), description='the host\'s own kernel, with tracker "host"'
    )
    workload: WorkloadSpec = Field(description="what the task does; `kind` selects it")
    source: SourceSpec = Field(default=SourceSpec(), description="what memory holds before round 0")

    @property
    def pages(self) -> int:
        """Memory in pages."""
        return self.memory // self.page_size

    @field_validator("memory")
    @classmethod
    def _memory_in_pages(cls, memory: int, info: ValidationInfo) -> int:
        if memory > LARGEST_MEMORY:
            raise ValueError(
                f"{format_size(memory)} is more than a task can have; "
                f"write at most {format_size(LARGEST_MEMORY)}"
            )
        page_size = info.data.get("page_size")  # absent when it was refused itself
        if page_size is not None and (memory < page_size or memory % page_size):
            raise ValueError(
                f"{format_size(memory)} is not a whole number of pages of {page_size} bytes; "
                f"write a multiple of the page size, at most {format_size(LARGEST_MEMORY)}"
            )
        return memory

    @field_validator("kernel")
    @classmethod
    def _kernel_can_track(cls, kernel: KernelSpec, info: ValidationInfo) -> KernelSpec:
        if info.data.get("tracker") == "uffd-wp" and kernel.profile == "6.1":
            raise ValueError(
                'profile "6.1" has no userfaultfd WP_ASYNC, which tracker "uffd-wp" needs; '
                'write "6.12" or "seed"'
            )
        return kernel

    @field_validator("hunks")
    @classmethod
    def _hunks_are_the_models(cls, hunks: HunksSpec, info: ValidationInfo) -> HunksSpec:
        if info.data.get("tracker") == "host" and hunks.off:
            raise ValueError(
                'off: tracker "host" asks a real kernel, which has no hunks to leave out; '
                'write tracker = "soft-dirty" for the model'
            )
        return hunks

    @field_validator("source")
    @classmethod
    def _images_are_the_models(cls, source: SourceSpec, info: ValidationInfo) -> SourceSpec:
        if info.data.get("tracker") == "host" and source.images:
            raise ValueError(
                'images: tracker "host" starts from memory that the workload writes; leave images '
                'out, or write tracker = "soft-dirty" or "uffd-wp"'
            )
        return source

    @field_validator("workload")
    @classmethod
    def _host_only_writes(cls, workload: WorkloadSpec, info: ValidationInfo) -> WorkloadSpec:
        if info.data.get("tracker") == "host" and workload.kind not in HOST_WORKLOADS:
            raise ValueError(
                f'kind "{workload.kind}" does more than write, which tracker "host" cannot; '
                f"write one of {', '.join(HOST_WORKLOADS)}, or another tracker"
            )
        return workload

    @field_validator("thp")
    @classmethod
    def _folio_sizes_exist(cls, thp: ThpSpec, info: ValidationInfo) -> ThpSpec:
        page_size, kernel = info.data.get("page_size"), info.data.get("kernel")
        if page_size is None or kernel is None:  # refused themselves
            return thp
        if thp.hugepages and kernel.profile == "6.1":
            raise ValueError(
                'hugepages: profile "6.1" has no sizes but PMD; write "6.12" or "seed"'
            )
        # From 4 pages up to below a table's reach, by powers of two (THP_ORDERS_ALL_ANON).
        first, tables = page_size // 1024, (page_size // 8).bit_length() - 1
        offered = [first << order for order in range(2, tables)]
        given = [kilobytes for kilobytes, _ in thp.sizes(page_size)]
        if len(given) > len(set(given)):
            raise ValueError("hugepages: cont is one of the sizes that are given as well")
        for kilobytes in given:
            if kilobytes not in offered:
                known = ", ".join(f"{size}kB" for size in offered)
                raise ValueError(
                    f"hugepages: there are no folios of {kilobytes}kB with pages of {page_size} "
                    f"bytes; there are {known}"
                )
        return thp

    @field_validator("workload")
    @classmethod
    def _script_fits(cls, workload: WorkloadSpec, info: ValidationInfo) -> WorkloadSpec:
        page_size, memory = info.data.get("page_size"), info.data.get("memory")
        if not isinstance(workload, ScriptSpec) or page_size is None or memory is None:
            return workload
        steps: list[Step] = []
        for key in ("setup", "script"):
            try:
                steps += parse_script(getattr(workload, key), page_size)
            except ScriptTextError as error:
                raise ValueError(f"{key}: {error}") from error
        need = peak_pages(steps) * page_size
        if need > memory:
            raise ValueError(
                f"the script's regions have {format_size(need)} together, more than memory = "
                f"{format_size(memory)}; write at least that"
            )
        return workload

    @field_validator("workload")
    @classmethod
    def _workload_fits(cls, workload: WorkloadSpec, info: ValidationInfo) -> WorkloadSpec:
        for key, limiting in _WORKLOAD_LIMITS.items():
            size, limit = getattr(workload, key, 0), info.data.get(limiting)
            if limit is not None and size > limit:
                raise ValueError(
                    f"{key} = {format_size(size)} is more than {limiting} = {format_size(limit)}; "
                    f"write at most that"
                )
            page_size = info.data.get("page_size")
            if limiting == "memory" and page_size is not None and size % page_size:
                raise ValueError(
                    f"{key} = {format_size(size)} is not a whole number of pages of {page_size} "
                    f"bytes; write a multiple of the page size"
                )
        return workload


class MigrationSpec(_StructSpec):
    """How a task is migrated, by which clock, and what is checked afterwards."""

    clock: Literal["virtual", "wall"] = Field(
        default="virtual",
        description='"virtual": repeatable, time from the cost model; "wall": measured real time',
    )
    shared_memory: Literal["final", "rounds"] = Field(
        default="final",
        description='when shared memory goes, which nothing tracks: "final": frozen, and not '
        'before, as CRIU does; "rounds": all of it in every round, as old CRIUs did',
    )
    policy: PolicySpec = Field(
        default=ThresholdPolicySpec(), description="when the final round comes"
    )
    link: LinkSpec = Field(default=LinkSpec(), description="the network")
    encoding: EncodingSpec = Field(
        default=RawEncodingSpec(), description="how the bytes of pages travel"
    )
    patience: PatienceSpec = Field(
        default=PatienceSpec(), description="how long a destination may be silent or away"
    )
    verify: VerifySpec = Field(default=VerifySpec(), description="how memory is compared")
    costs: CostSpec = Field(default=CostSpec(), description="what the kernel's work costs")
    record: RecordSpec = Field(default=RecordSpec(), description="what results say beyond totals")
    run_after: Time = Field(
        default="1s",
        description="how long the workload goes on at the destination, in its own time",
    )

    @property
    def run_after_ns(self) -> int:
        """Workload time after the restore, in nanoseconds."""
        return parse_time_ns(self.run_after)


def _whole_floats_to_int(value: Any) -> Any:
    """``value`` with every whole float, at any depth, as the int it was before protobuf."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): _whole_floats_to_int(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_whole_floats_to_int(item) for item in value]
    return value
