"""What is wrong with a CRIU image directory, in one line."""

from __future__ import annotations

from pathlib import Path

from livemigration.errors import BadRequest


class ImageError(BadRequest):
    """Images that cannot be used: `file` is where, `problem` what, `advice` what to do about it."""

    def __init__(self, file: Path, problem: str, advice: str) -> None:
        super().__init__(f"{file}: {problem}; {advice}")
        self.file = file
        self.problem = problem
        self.advice = advice
