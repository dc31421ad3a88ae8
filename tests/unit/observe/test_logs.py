"""Log lines: each can be parsed, and says which migration it belongs to."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemigration.observe.logs import (
    JsonLines,
    LogConfig,
    LogContext,
    LoggedTelemetry,
    TextLines,
    start_logging,
)
from livemigration.telemetry import Telemetry, open_telemetry


def record(message: str, **extra: Any) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "some.module", "levelno": 20, "levelname": "INFO"})
    made.msg = message
    made.__dict__.update(extra)
    return made


@pytest.fixture
def restored() -> Iterator[None]:
    """Logging is the process' own: what a test does to it is undone."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logging.basicConfig(level=level, handlers=handlers, force=True)
    for name in ("livemigration", "source_node", "dest_node", "predump"):
        logging.getLogger(name).setLevel(logging.NOTSET)


async def silent() -> Telemetry:
    async with open_telemetry("", role="source", host_id="h") as telemetry:
        return telemetry


@given(st.text(), st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.binary())))
def test_any_message_is_one_json_object_on_one_line(text: str, fields: dict[str, Any]) -> None:
    line = JsonLines(LogContext("source", "a", "3f9c")).format(record(text, fields=fields))

    assert "\n" not in line
    parsed = json.loads(line)
    assert parsed["message"] == text
    assert parsed["migration_id"] == "3f9c"
    assert parsed.keys() >= fields.keys()


def test_a_field_never_replaces_what_every_line_has() -> None:
    line = JsonLines(LogContext("source", "a", "3f9c")).format(
        record("x", fields={"migration_id": "other", "level": "none", "pages": 7})
    )

    parsed = json.loads(line)
    assert (parsed["migration_id"], parsed["level"], parsed["pages"]) == ("3f9c", "info", 7)


def test_a_message_of_several_lines_stays_one_line_of_text() -> None:
    line = TextLines(LogContext("dest", "b", "3f9c")).format(record("one\ntwo"))

    assert line.endswith("Z info [3f9c] one two") or " info [3f9c] one two" in line
    assert "\n" not in line


def test_an_error_brings_its_traceback_into_the_json() -> None:
    try:
        raise OSError("disk full")
    except OSError as error:
        made = record("it failed", exc_info=(type(error), error, error.__traceback__))

    parsed = json.loads(JsonLines(LogContext("dest")).format(made))

    assert parsed["exception"].splitlines()[-1] == "OSError: disk full"
    assert parsed["migration_id"] is None


@pytest.mark.usefixtures("restored")
async def test_lines_of_other_modules_carry_the_migration_until_it_ends() -> None:
    stream = io.StringIO()
    config = LogConfig("json", "info", LogContext("source", "a"))
    start_logging(config, stream)
    telemetry = LoggedTelemetry(await silent(), config.context)
    other = logging.getLogger("livemigration.telemetry")

    other.warning("before")
    telemetry.state("m1", state="round", message="round 0")
    other.warning("during")
    telemetry.state("m1", state="done", message="verified")
    telemetry.state("m1", verified=True, downtime_s=0.5)
    other.warning("after")

    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["message"], line["migration_id"]) for line in lines] == [
        ("before", None),
        ("round 0", "m1"),
        ("during", "m1"),
        ("done: verified", "m1"),
        ("result", "m1"),
        ("after", None),
    ]
    assert lines[4]["downtime_s"] == 0.5


@pytest.mark.usefixtures("restored")
async def test_the_level_holds_for_us_and_libraries_speak_from_warnings_on() -> None:
    stream = io.StringIO()
    config = LogConfig("json", "debug", LogContext("source", "a"))
    start_logging(config, stream)

    logging.getLogger("livemigration.x").debug("ours")
    logging.getLogger("grpc.x").info("a library's news")
    logging.getLogger("grpc.x").warning("a library's warning")
    start_logging(LogConfig("json", "error", config.context), stream)
    logging.getLogger("livemigration.x").warning("not any more")

    messages = [json.loads(line)["message"] for line in stream.getvalue().splitlines()]
    assert messages == ["ours", "a library's warning"]
