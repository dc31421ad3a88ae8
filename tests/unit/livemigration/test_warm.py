"""Getting ready in the background: a migration waits for it, stopping does not."""

import subprocess
import sys
import threading

from dest_node.warmup import warm_up as warm_destination
from livemigration.warm import WarmUp
from source_node.warmup import warm_up as warm_source


def test_who_waits_goes_on_when_the_work_is_done() -> None:
    may_end = threading.Event()
    done: list[int] = []

    def work() -> None:
        may_end.wait()
        done.append(1)

    warm = WarmUp(work)
    warm.start()
    assert done == []
    may_end.set()
    warm.wait()
    assert done == [1]


def test_waiting_for_what_never_began_is_over_at_once() -> None:
    WarmUp(lambda: None).wait()


def test_a_process_ends_though_the_work_does_not() -> None:
    code = (
        "import threading\n"
        "from livemigration.warm import WarmUp\n"
        "WarmUp(threading.Event().wait).start()\n"
        "print('over')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "over\n"


def test_both_hosts_get_ready_without_a_task_of_their_own() -> None:
    warm_source()
    warm_destination()
