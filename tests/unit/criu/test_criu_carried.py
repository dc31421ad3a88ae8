"""Images that travel with a task: what a destination takes, and what becomes of the hand-over."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from livemigration.criu.carried import MOST_BYTES, CarriedImages
from livemigration.criu.compare import compare
from livemigration.criu.images import ImageError
from livemigration.errors import DamagedFrame
from livemigration.v1 import common_pb2
from predump.inprocess import InProcessTransport, migrate_in_process
from predump.result import Result
from predump.scenario import scenario_from_mapping

DATA = Path(__file__).parents[2] / "data" / "criu"


def carried(*images: tuple[str, bytes]) -> CarriedImages:
    return CarriedImages.received(
        common_pb2.CarriedImage(name=name, content=content) for name, content in images
    )


def test_what_travels_is_what_was_read() -> None:
    read = CarriedImages.read(DATA / "full-4.2.1")
    assert CarriedImages.received(read.messages()).files == read.files
    assert "core-24665.img" in read.files
    assert "pages-1.img" not in read.files


@pytest.mark.parametrize(
    "name",
    ["../core-1.img", "/etc/passwd", "core-1.img/x", ".img", "core", "pages-1.img", "a" * 300, ""],
)
def test_names_that_are_no_image_s(name: str) -> None:
    with pytest.raises(DamagedFrame, match="cannot be called"):
        carried((name, b""))


def test_twice_and_too_much() -> None:
    with pytest.raises(DamagedFrame, match=r"core-1\.img came twice"):
        carried(("core-1.img", b""), ("core-1.img", b""))
    with pytest.raises(DamagedFrame, match="more than 16 MiB"):
        carried(("core-1.img", bytes(MOST_BYTES)), ("core-2.img", b"?"))


def test_more_than_can_be_carried(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"ghost-file-{number}.img").write_bytes(bytes(6 << 20))
    with pytest.raises(ImageError, match="more than 16 MiB of images beside the pages"):
        CarriedImages.read(tmp_path)


class Exporting(InProcessTransport):
    """A destination whose operator wants images."""

    def __init__(self, export_to: Path) -> None:
        super().__init__()
        self.export_to = export_to

    async def prepare(self, migration_id: str, task: dict[str, Any], **more: Any) -> None:
        await super().prepare(migration_id, task, **more)
        assert self.incoming is not None
        self.incoming.export_to = self.export_to


def migrate(folder: Path, **tables: Any) -> Result:
    scenario = scenario_from_mapping(
        {
            "schema": "predump.scenario/1",
            "memory": "512KiB",
            "source": {"images": str(DATA / "full-4.2.1")},
            "workload": {"kind": "idle"},
            "policy": {"kind": "fixed", "rounds": 1},
            "migration": {"run_after": "1ms"},
        }
        | tables
    )

    async def run() -> Result:
        transport = Exporting(folder)
        try:
            return await migrate_in_process(scenario, transport=transport)
        finally:
            await transport.end()

    return asyncio.run(run())


def test_the_destination_writes_what_came_with_the_task(tmp_path: Path) -> None:
    result = migrate(tmp_path / "out")
    assert result.exit_code == 0
    assert compare(DATA / "full-4.2.1", tmp_path / "out").same
    for file in (DATA / "full-4.2.1").glob("*.img"):
        if not file.name.startswith("page"):
            assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_after_a_post_copy_it_is_written_when_the_last_page_has_come(tmp_path: Path) -> None:
    result = migrate(tmp_path / "out", policy={"kind": "post-copy"})
    assert result.post_copy is not None
    assert result.post_copy.pages_lazy > 0
    assert compare(DATA / "full-4.2.1", tmp_path / "out").same


def test_a_destination_that_cannot_write_leaves_the_task_at_the_source(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("")
    result = migrate(tmp_path / "out")
    assert result.owner == "source"
    assert "is there already" in str(result.error)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]
