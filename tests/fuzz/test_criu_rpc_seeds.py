"""Cases of the RPC's fuzzer that found something, and some more of its kind."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.criu_rpc import Fuzzer, served

FOUND = (
    33,  # a client gone with its dump under way: the next one waits for it
    12332,  # texts that are no UTF-8, which protobuf gives as bytes
    163,  # page servers that waited for clients took the threads that dumps need
)


def test_found_cases_and_some_more(tmp_path: Path) -> None:
    with served(tmp_path) as path:
        fuzzer = Fuzzer(path, tmp_path)
        for seed in (*FOUND, *range(1, 26)):
            fuzzer.run(seed)
