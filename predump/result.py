"""The outcome of one migration: the JSON object ``predump.result/1``.

Times are seconds, sizes bytes. Addresses are strings such as ``"0x100000fe000"``, because many
JSON readers keep numbers as doubles and would round 64-bit addresses. docs/results.md explains
every field to users, docs/schema/result-1.json is the JSON Schema made from these classes.
"""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from livemigration.spec import EncodingSpec, PolicySpec, RawEncodingSpec
from livemigration.spec_errors import SpecError, first_line

RESULT_SCHEMA = "predump.result/1"

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Address = Annotated[str, Field(pattern=r"^0x[0-9a-f]{1,16}$")]
Owner = Literal["source", "destination", "in-doubt"]


def _one_line(text: str) -> str:
    """What a system or a library says may have line breaks; readers of results get one line."""
    return " ".join(text.split())


Line = Annotated[str, AfterValidator(_one_line)]


class _Record(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        json_schema_serialization_defaults_required=True,
    )


class ProcessPages(_Record):
    """The pages of one process in a round, by bins of addresses."""

    pid: Annotated[int, Field(ge=1)] = Field(description="the process; the root is 1")
    start: tuple[Address, ...] = Field(description="addresses of the bins that have any, ascending")
    pages: tuple[Count, ...] = Field(description="how many are in each of them")


class PageMap(_Record):
    """Where in memory the pages are that a round sends."""

    bin_bytes: Count = Field(description="size of a bin, a power of two; bins start at multiples")
    processes: tuple[ProcessPages, ...] = Field(description="by process")


Encoding = Literal["raw", "zero", "zstd", "lz4", "delta", "delta-zstd", "delta-lz4"]


class EncodingResult(_Record):
    """Pages that travelled in one encoding."""

    encoding: Encoding = Field(description="how their bytes travelled")
    pages: Count = Field(description="number of pages")
    bytes: Count = Field(description="bytes of page content that they took on the wire")


class DeltaCache(_Record):
    """How often the version of a page that was sent last was still remembered."""

    hits: Count = Field(default=0, description="pages whose last version was remembered")
    misses: Count = Field(default=0, description="pages of which none was: new, or driven out")
    overflows: Count = Field(
        default=0, description="hits that differed too much for a delta to be shorter"
    )


class RoundResult(_Record):
    """One round: 0 is the full copy, the last one was sent while the task was frozen."""

    round: Count = Field(description="number of the round, from 0")
    pages_sent: Count = Field(description="pages sent in this round, zero pages included")
    pages_soft_dirty: Count = Field(description="pages that the kernel interface reported")
    pages_written: Count = Field(
        description="pages that the workload really changed since they were last sent"
    )
    pages_zero: Count = Field(description="pages sent that hold only zeros")
    bytes_wire: Count = Field(description="bytes that this round put on the wire")
    duration_s: Seconds = Field(description="from the start of the round to its last byte")
    reason: str = Field(description="why the round was made, or why it was the last one")
    page_map: PageMap | None = Field(
        default=None, description="where its pages are, if the scenario asked for it; else null"
    )
    encodings: tuple[EncodingResult, ...] = Field(
        default=(), description="pages and bytes by encoding, those that were used"
    )
    encode_s: Seconds = Field(default=0.0, description="processor time that encoding took")
    delta_cache: DeltaCache = Field(default=DeltaCache(), description="how deltas found a base")


class Downtime(_Record):
    """From the freeze at the source to the task runnable at the destination, and its parts."""

    total: Seconds = Field(description="the whole downtime")
    freeze: Seconds = Field(description="stopping the task")
    scan: Seconds = Field(description="finding the pages of the final round")
    dump: Seconds = Field(description="collecting them and the task's state")
    transfer: Seconds = Field(description="sending them")
    restore: Seconds = Field(description="rebuilding the task at the destination")
    resume: Seconds = Field(description="until it can run there")


class PageRange(_Record):
    """A range of pages that never came."""

    pid: Annotated[int, Field(ge=1)] = Field(description="process that needs them; the root is 1")
    start: Address = Field(description='address of the first page, as "0x..."')
    pages: Annotated[int, Field(ge=1)] = Field(description="number of pages in the range")


class PostCopy(_Record):
    """How the pages came that were not there when the task went on."""

    pages_lazy: Count = Field(description="pages that were missing when the task went on")
    working_set: Count = Field(
        description="of these, pages that the task used until the last one had come"
    )
    faults: Count = Field(description="times that the task stood still for a missing page")
    faults_remote: Count = Field(
        description="of these, for a page that nobody had asked for yet; the others were under way"
    )
    stalled_s: Seconds = Field(description="how long the task stood still for them in all")
    longest_stall_s: Seconds = Field(description="the longest of these times")
    pages_prefetched: Count = Field(description="pages that came without the task waiting for them")
    pages_dropped: Count = Field(
        description="pages that the task unmapped or gave back before they came; never compared"
    )
    pages_zero: Count = Field(description="pages that came as zeros")
    bytes_wire: Count = Field(description="bytes that they put on the wire")
    residual_s: Seconds = Field(
        description="from runnable to the last page: how long the source had to stay"
    )
    slowdown: Annotated[float, Field(ge=0, le=1)] = Field(
        description="share of that time in which the task could not run"
    )
    pages_missing: Count = Field(description="pages that never came")
    missing: tuple[PageRange, ...] = Field(
        description="where they are, by address; very long lists are cut"
    )
    halted: Line | None = Field(description="why the task stands still; null if it does not")


class Mismatch(_Record):
    """A range of pages that differ at the destination, all last sent in the same round."""

    pid: Annotated[int, Field(ge=1)] = Field(description="process that has them; the root is 1")
    start: Address = Field(description='address of the first page, as "0x..."')
    pages: Annotated[int, Field(ge=1)] = Field(description="number of pages in the range")
    last_round: Count | None = Field(description="round that last sent them; null if none ever did")


class Result(_Record):
    """Everything that is reported of one migration."""

    schema_id: Literal["predump.result/1"] = Field(
        default="predump.result/1", alias="schema", description="name and version of this format"
    )
    name: str = Field(description="name of the scenario")
    migration_id: str = Field(description="identifies this run in logs and telemetry")
    clock: Literal["virtual", "wall"] = Field(
        description='"virtual": times come from the cost model; "wall": they were measured'
    )
    seed: Count = Field(description="all randomness of the run comes from it")
    page_size: Literal[4096, 16384, 65536] = Field(description="bytes per page")
    memory_bytes: Count = Field(description="size of the task's memory")
    policy: PolicySpec = Field(description="the policy with all its settings")
    encoding: EncodingSpec = Field(
        default=RawEncodingSpec(), description="how pages travelled, with all its settings"
    )
    verified: bool = Field(description="the destination's memory equalled the source's")
    continued_equal: bool | None = Field(
        description="after the restore the workload went on to the same memory as a run that never "
        "migrated; null if that was not reached"
    )
    owner: Owner = Field(description="the host that has the task now")
    error: Line | None = Field(description="what went wrong, in one line; null if nothing did")
    rounds: tuple[RoundResult, ...] = Field(description="in order, the final round last")
    downtime_s: Downtime = Field(description="from the freeze to runnable, and its parts")
    verify_s: Seconds = Field(description="verification, which is not part of the downtime")
    total_time_s: Seconds = Field(
        description="from the start of round 0 to runnable; with post-copy, to the last page"
    )
    bytes_wire: Count = Field(description="bytes on the wire, all rounds and what is around them")
    bytes_pages: Count = Field(
        description="bytes of page content that they brought, before it was encoded"
    )
    encodings: tuple[EncodingResult, ...] = Field(
        default=(), description="pages and bytes by encoding, all rounds"
    )
    encode_s: Seconds = Field(
        default=0.0, description="processor time that encoding took, all rounds"
    )
    delta_cache: DeltaCache = Field(
        default=DeltaCache(), description="how deltas found a base, all rounds"
    )
    pages_lost: Count = Field(
        description="pages written, but not reported, so not sent: by the model's own record"
    )
    pages_spurious: Count = Field(description="pages sent again though unchanged since last sent")
    pages_different: Count = Field(
        description="pages that differed at the destination when it verified"
    )
    mismatches: tuple[Mismatch, ...] = Field(
        description="where they are, by address; very long lists are cut"
    )
    post_copy: PostCopy | None = Field(
        default=None, description="how the rest of the pages came; null without post-copy"
    )
    hunks_off: tuple[str, ...] = Field(description="hunks of the patch that were left out")
    wall_s: Seconds = Field(description="real time that the run took")
    transfer_wall_s: Seconds = Field(
        description="real time from the first page sent to verified, whatever the clock"
    )
    versions: dict[str, str] = Field(description="predump, Python, NumPy, Numba, gRPC ...")
    scenario: dict[str, Any] | None = Field(
        default=None,
        description="what was run, with every key: objects `task` and `migration`; null in results "
        "that are kept beside it",
    )

    @property
    def exit_code(self) -> int:
        """Exit status of a command: 0 only if verified, 3 if memory differs, else 1."""
        if self.pages_different or self.mismatches or self.continued_equal is False:
            return 3
        if self.error is not None:
            return 1
        return 0 if self.verified else 3

    def to_json(self, *, indent: int | None = 2) -> str:
        """One JSON object, keys in the order of this class, with no newline at its end."""
        return self.model_dump_json(indent=indent)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read what `to_json` wrote; ValueError with one line if it is not such an object."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise SpecError(f"not a {RESULT_SCHEMA} object: {first_line(error, cls)}") from error


def result_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a result, as kept in docs/schema/result-1.json."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Result.model_json_schema(mode="serialization"),
    }


def result_schema_text() -> str:
    """The schema file's text; ``python -m predump.result`` prints it to renew the file."""
    return json.dumps(result_schema(), indent=2) + "\n"


if __name__ == "__main__":
    print(result_schema_text(), end="")
