"""Stop rules, against the numbers that their sources give."""

import pytest

from livemigration.policy import DowntimeLimit, FixedRounds, RoundView, Threshold, build_policy
from livemigration.spec import DowntimeLimitPolicySpec, FixedPolicySpec, ThresholdPolicySpec

MS = 1_000_000


def _view(**fields: int) -> RoundView:
    plain = {
        "round": 1,
        "pages_written": 100,
        "pages_skipped": 900,
        "bytes_wire": 100 * 4096,
        "duration_ns": 10 * MS,
        "pages_dirty": 50,
        "page_size": 4096,
    }
    return RoundView(**(plain | fields))


def test_fixed_freezes_after_exactly_its_rounds() -> None:
    policy = FixedRounds(2)
    assert [policy.decide(_view(round=n)).freeze for n in range(4)] == [False, False, True, True]


def test_fixed_with_no_rounds_goes_from_the_full_copy_to_the_final_round() -> None:
    assert FixedRounds(0).decide(_view(round=0)).freeze


@pytest.mark.parametrize(
    ("written", "skipped", "freeze"),
    [
        (30, 70, False),  # exactly 70 %: LXD's comparison is "above", not "at least"
        (29, 71, True),
        (295, 705, True),  # 100 - 29.5 cut to an integer before subtracting: 71
        (301, 699, False),  # 100 - 30 = 70
        (0, 0, True),  # nothing at all to send
    ],
)
def test_threshold_counts_in_whole_percent_as_lxd_does(
    written: int, skipped: int, freeze: bool
) -> None:
    view = _view(round=1, pages_written=written, pages_skipped=skipped)
    assert Threshold(10, 70).decide(view).freeze is freeze


def test_threshold_gives_up_after_its_most_rounds() -> None:
    view = _view(round=3, pages_written=900, pages_skipped=100)
    assert Threshold(3, 70).decide(view).freeze
    assert not Threshold(4, 70).decide(view).freeze


def test_downtime_limit_freezes_when_the_rest_fits() -> None:
    # 100 pages took 10 ms: 50 dirty pages would take 5 ms.
    assert DowntimeLimit(5 * MS, 30).decide(_view(pages_dirty=50)).freeze
    assert not DowntimeLimit(5 * MS - 1, 30).decide(_view(pages_dirty=50)).freeze


def test_downtime_limit_gives_up_after_its_most_rounds() -> None:
    assert DowntimeLimit(1, 4).decide(_view(round=4, pages_dirty=10**6)).freeze


def test_every_policy_spec_has_its_policy() -> None:
    assert build_policy(FixedPolicySpec(rounds=3)) == FixedRounds(3)
    assert build_policy(ThresholdPolicySpec(max_rounds=5, goal_percent=80)) == Threshold(5, 80)
    limit = DowntimeLimitPolicySpec(downtime_limit="250ms", max_rounds=9)
    assert build_policy(limit) == DowntimeLimit(250 * MS, 9)
