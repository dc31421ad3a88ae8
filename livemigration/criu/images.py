"""Reading CRIU image directories, and making the model's memory of them: where to begin."""

from __future__ import annotations

from livemigration.criu.directory import (
    ImageDirectory,
    ImageProcess,
    ImageVma,
    SharedSegment,
)
from livemigration.criu.errors import ImageError
from livemigration.criu.load import load_into
from livemigration.criu.pagemap import PageSet

__all__ = [
    "ImageDirectory",
    "ImageError",
    "ImageProcess",
    "ImageVma",
    "PageSet",
    "SharedSegment",
    "load_into",
]
