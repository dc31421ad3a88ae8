"""CRIU image directories, read and written: where to begin."""

from __future__ import annotations

from livemigration.criu.carried import CarriedImages
from livemigration.criu.directory import ImageDirectory, ImageProcess, SharedSegment
from livemigration.criu.errors import ImageError
from livemigration.criu.export import DumpTimes, Exported, RoundPages, export_task
from livemigration.criu.load import load_into, load_task
from livemigration.criu.pagemap import PageSet
from livemigration.criu.pagemap_entries import Flavour
from livemigration.criu.tables import ImageVma

__all__ = [
    "CarriedImages",
    "DumpTimes",
    "Exported",
    "Flavour",
    "ImageDirectory",
    "ImageError",
    "ImageProcess",
    "ImageVma",
    "PageSet",
    "RoundPages",
    "SharedSegment",
    "export_task",
    "load_into",
    "load_task",
]
