"""Stop rules, against the numbers that their sources give."""

import pytest

from livemigration.policy import (
    AutoConverge,
    Decision,
    DowntimeLimit,
    FixedRounds,
    Hybrid,
    Phaul,
    PostCopy,
    RoundView,
    StopAndCopy,
    Threshold,
    Xen,
    build_policy,
)
from livemigration.spec import (
    AutoConvergePolicySpec,
    DowntimeLimitPolicySpec,
    FixedPolicySpec,
    HybridPolicySpec,
    PhaulPolicySpec,
    PostCopyPolicySpec,
    StopAndCopyPolicySpec,
    ThresholdPolicySpec,
    XenPolicySpec,
)

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


def test_downtime_limit_counts_what_only_the_final_round_sends() -> None:
    fits = DowntimeLimit(5 * MS, 30).decide(_view(pages_dirty=20, pages_left=30))
    assert fits == Decision(
        True, "20 dirty pages and 30 left to the final round fit into the limit"
    )
    assert not DowntimeLimit(5 * MS - 1, 30).decide(_view(pages_dirty=20, pages_left=30)).freeze


def test_what_only_the_final_round_sends_slows_nobody_down_and_ends_no_pre_dumps() -> None:
    """It is not what the task dirties."""
    slowing = build_policy(AutoConvergePolicySpec(downtime_limit="5ms"))
    growing = build_policy(HybridPolicySpec(rounds=9, downtime_limit="5ms", least_gain_percent=10))
    for number in range(4):
        view = _view(round=number, pages_dirty=1, pages_left=10**6)
        assert slowing.decide(view).throttle_percent == 0
        assert not growing.decide(view).freeze


def _phaul(*written: int, policy: Phaul | None = None) -> list[bool]:
    """Whether p.haul's rules freeze after each of these pre-dumps."""
    policy = policy or Phaul(8, 64, 10)
    return [
        policy.decide(_view(round=n, pages_written=pages)).freeze for n, pages in enumerate(written)
    ]


def test_phaul_freezes_when_64_pages_or_fewer_were_written() -> None:
    assert _phaul(1000, 65, 64) == [False, False, True]


def test_phaul_freezes_when_a_round_grows_by_more_than_a_tenth() -> None:
    assert _phaul(1000, 500, 550) == [False, False, False]  # exactly 10 %
    assert _phaul(1000, 500, 556) == [False, False, True]  # 11 %


def test_phaul_makes_nine_pre_dumps_at_most() -> None:
    assert _phaul(*[1000] * 9) == [False] * 8 + [True]


def _xen(policy: Xen, *rounds: tuple[int, int]) -> list[bool]:
    """Whether Xen's rules freeze after each round of (pages sent, pages dirty) of 1,000 pages."""
    return [
        policy.decide(
            _view(round=n, pages_written=sent, pages_skipped=1000 - sent, pages_dirty=dirty)
        ).freeze
        for n, (sent, dirty) in enumerate(rounds)
    ]


def test_xen_freezes_below_50_dirty_pages() -> None:
    assert _xen(Xen(5, 50, 3), (1000, 50), (50, 49)) == [False, True]


def test_xen_stops_after_iteration_5() -> None:
    assert _xen(Xen(5, 50, 0), *[(1000, 1000)] * 6) == [False] * 5 + [True]


def test_old_xen_never_sends_more_than_three_times_the_memory() -> None:
    assert _xen(Xen(29, 50, 3), *[(1000, 1000)] * 4) == [False, False, False, True]


def _converge(*dirty: int) -> list[Decision]:
    """QEMU's decisions after rounds that each sent 100 pages while so many got dirty."""
    policy = AutoConverge(DowntimeLimit(1, 30), 50, 20, 10, 99)
    return [policy.decide(_view(round=n, pages_dirty=pages)) for n, pages in enumerate(dirty)]


def test_auto_converge_slows_the_task_after_every_second_period_that_dirties_too_much() -> None:
    decisions = _converge(51, 51, 51, 51, 51, 51)
    assert [d.throttle_percent for d in decisions] == [0, 20, 20, 30, 30, 40]
    assert decisions[-1].reason.endswith("slowed by 40 %")


def test_auto_converge_lets_a_task_be_that_dirties_no_more_than_half() -> None:
    assert [d.throttle_percent for d in _converge(50, 50, 50, 50)] == [0, 0, 0, 0]


def test_auto_converge_never_slows_beyond_its_most() -> None:
    assert _converge(*[100] * 30)[-1].throttle_percent == 99


def test_auto_converge_keeps_the_task_slow_when_it_freezes() -> None:
    decisions = _converge(51, 51, 0)
    assert decisions[-1].freeze
    assert decisions[-1].throttle_percent == 20


def test_stop_and_copy_makes_no_pre_dumps() -> None:
    assert not StopAndCopy().pre_dumps
    assert StopAndCopy().decide(_view()).freeze


def test_every_policy_spec_has_its_policy() -> None:
    assert build_policy(FixedPolicySpec(rounds=3)) == FixedRounds(3)
    assert build_policy(ThresholdPolicySpec(max_rounds=5, goal_percent=80)) == Threshold(5, 80)
    limit = DowntimeLimitPolicySpec(downtime_limit="250ms", max_rounds=9)
    assert build_policy(limit) == DowntimeLimit(250 * MS, 9)
    converge = AutoConvergePolicySpec(downtime_limit="250ms", max_rounds=9)
    assert build_policy(converge) == AutoConverge(DowntimeLimit(250 * MS, 9), 50, 20, 10, 99)
    assert build_policy(PhaulPolicySpec()) == Phaul(8, 64, 10)
    assert build_policy(XenPolicySpec()) == Xen(5, 50, 3)
    assert build_policy(StopAndCopyPolicySpec()) == StopAndCopy()


def test_post_copy_freezes_at_once_and_leaves_pages_behind() -> None:
    policy = build_policy(PostCopyPolicySpec())
    assert isinstance(policy, PostCopy)
    assert not policy.pre_dumps
    assert policy.decide(_view()).post_copy


def test_a_hybrid_leaves_behind_what_its_rounds_left() -> None:
    policy = build_policy(HybridPolicySpec(rounds=2))
    assert isinstance(policy, Hybrid)
    decisions = [policy.decide(_view(round=number)) for number in range(3)]
    assert [d.freeze for d in decisions] == [False, False, True]
    assert decisions[2].post_copy


def test_a_hybrid_whose_rest_fits_into_the_limit_leaves_nothing_behind() -> None:
    # 50 pages at 100 pages in 10 ms: 5 ms
    policy = build_policy(HybridPolicySpec(rounds=9, downtime_limit="5ms"))
    assert policy.decide(_view(round=0)) == Decision(True, "50 dirty pages fit into the limit")
    longer = build_policy(HybridPolicySpec(rounds=9, downtime_limit="4ms"))
    assert not longer.decide(_view(round=0)).freeze


@pytest.mark.parametrize(("dirty", "goes_on"), [(80, True), (81, False)])
def test_a_hybrid_stops_pre_dumping_when_a_round_gains_too_little(
    dirty: int, goes_on: bool
) -> None:
    policy = build_policy(HybridPolicySpec(rounds=9, least_gain_percent=20))
    decision = policy.decide(_view(round=1, pages_written=100, pages_dirty=dirty))
    assert decision.freeze is not goes_on
    assert decision.post_copy is not goes_on


def test_a_hybrid_with_nothing_dirty_needs_no_post_copy() -> None:
    decision = build_policy(HybridPolicySpec(rounds=0)).decide(_view(pages_dirty=0))
    assert (decision.freeze, decision.post_copy) == (True, False)
