"""What becomes of an expectation; the kernel stands in (tests/netns/test_expected_labels.py has the real one)."""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from collections.abc import Sequence
from typing import cast

import pytest

from scitags_agent import expectations
from scitags_agent.bpf.kernel_label import Canonical, Expectation, KernelLabels
from scitags_agent.expectations import Expectations, Expected
from scitags_core.flow import FlowKey

PLACE = FlowKey.of("2001:db8::2", 1094, "2001:db8::1", 0)
FLOW = FlowKey.of("2001:db8::2", 1094, "2001:db8::1", 40000)
COOKIE, OTHER_COOKIE = 77, 78


class Kernel:
    """What is expected where, and who met it: 0 is nobody, from a decision on."""

    def __init__(self) -> None:
        self.expected: dict[FlowKey, list[int]] = {}
        self.met: dict[int, int] = {}
        self.is_full = False

    def _refuse_when_full(self) -> None:
        if self.is_full:
            raise OSError(errno.E2BIG, "full")

    def expect(self, place: FlowKey, canonical: Canonical, expected: Sequence[Expectation]) -> None:
        if expected:
            self._refuse_when_full()
        self.expected[place] = [one.id for one in expected]

    def met_by(self, one: int) -> int:
        return self.met.get(one, 0)

    def take_back(self, one: int) -> int:
        if one not in self.met:
            self._refuse_when_full()
        return self.met.setdefault(one, 0)

    def decide(self, one: int) -> None:
        self._refuse_when_full()
        self.met[one] = 0

    def forget(self, one: int) -> None:
        del self.met[one]


class Bench:
    """Expectations before that kernel."""

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.counters: Counter[str] = Counter()
        self.walks = 0
        self.walked = asyncio.Event()
        self.tested = Expectations(cast("KernelLabels", self.kernel), self._walk, self.counters)

    def _walk(self) -> None:
        self.walks += 1
        self.walked.set()

    def expect(self) -> Expected:
        one = self.tested.expect(PLACE, 1, 0.0, 1.0)
        assert one is not None
        return one


@pytest.fixture
def bench() -> Bench:
    return Bench()


def run(scenario: object) -> None:
    asyncio.run(asyncio.wait_for(scenario, 20))  # type: ignore[arg-type]


def test_what_was_meant_is_the_marker_s_from_then_on(bench: Bench) -> None:
    async def scenario() -> None:
        one = bench.expect()
        bench.kernel.met[one.one.id] = COOKIE
        assert one.met_by == COOKIE
        one.settle(COOKIE, FLOW)
        assert bench.tested.is_adopted(FLOW)
        assert bench.tested.is_adopted(FLOW.reversed())
        assert bench.kernel.met == {one.one.id: COOKIE}  # a walk leaves its label alone
        bench.tested.confirm(FLOW.reversed())
        assert not bench.tested.is_adopted(FLOW)
        assert bench.kernel.met == {one.one.id: 0}
        assert bench.kernel.expected == {PLACE: []}
        one.settle()  # again, with nothing left to do

    run(scenario())
    assert bench.counters == {"expected": 1, "expected_met": 1}
    assert bench.walks == 0


@pytest.mark.parametrize("met_by", [0, OTHER_COOKIE])
def test_what_was_not_meant_loses_its_label(bench: Bench, met_by: int) -> None:
    async def scenario() -> None:
        one = bench.expect()
        if met_by:
            bench.kernel.met[one.one.id] = met_by
        one.settle(COOKIE, FLOW)
        assert bench.kernel.met == {one.one.id: 0}
        assert not bench.tested.is_adopted(FLOW)

    run(scenario())
    assert bench.counters == {"expected": 1, "expected_wrongly" if met_by else "expected_unmet": 1}
    assert bench.walks == bool(met_by)


def test_a_flow_that_does_not_come_leaves_no_label_behind(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expectations, "ADOPTION_SECONDS", 0.0)

    async def scenario() -> None:
        one = bench.expect()
        bench.kernel.met[one.one.id] = COOKIE
        one.settle(COOKIE, FLOW)
        await bench.walked.wait()
        assert not bench.tested.is_adopted(FLOW)
        assert bench.kernel.met == {one.one.id: 0}

    run(scenario())


def test_the_next_with_the_same_ends_takes_the_place_of_one_that_has_not_come(bench: Bench) -> None:
    async def scenario() -> None:
        first, second = bench.expect(), bench.expect()
        bench.kernel.met |= {first.one.id: COOKIE, second.one.id: OTHER_COOKIE}
        first.settle(COOKIE, FLOW)
        second.settle(OTHER_COOKIE, FLOW)
        assert bench.kernel.met == {first.one.id: 0, second.one.id: OTHER_COOKIE}
        assert bench.walks == 1
        bench.tested.confirm(FLOW)
        assert bench.kernel.met == {first.one.id: 0, second.one.id: 0}

    run(scenario())


def test_a_connection_to_its_own_end_has_one_name(bench: Bench) -> None:
    own = FlowKey.of(PLACE.src, PLACE.src_port, PLACE.src, PLACE.src_port)

    async def scenario() -> None:
        one = bench.expect()
        bench.kernel.met[one.one.id] = COOKIE
        one.settle(COOKIE, own)
        bench.tested.confirm(own)
        assert not bench.tested.is_adopted(own)

    run(scenario())


def test_at_the_end_all_labels_that_are_nobody_s_are_given_back(bench: Bench) -> None:
    async def scenario() -> None:
        met, waiting, adopted = (bench.expect() for _ in range(3))
        assert bench.kernel.expected[PLACE] == [1, 2, 3]
        bench.kernel.met |= {met.one.id: COOKIE, adopted.one.id: OTHER_COOKIE}
        adopted.settle(OTHER_COOKIE, FLOW)
        assert bench.tested.close()
        assert set(bench.kernel.met.values()) == {0}
        assert bench.kernel.expected == {PLACE: []}
        waiting.settle()
        assert not bench.tested.close()

    run(scenario())


def test_what_the_kernel_has_no_room_for_is_not_expected(bench: Bench) -> None:
    async def scenario() -> None:
        one = bench.expect()
        bench.kernel.is_full = True
        assert bench.tested.expect(PLACE, 1, 0.0, 1.0) is None
        assert bench.kernel.expected[PLACE] == []  # whoever is meant by what comes cannot be said
        one.settle(COOKIE, FLOW)
        assert not bench.tested.is_adopted(FLOW)

    run(scenario())
    assert bench.counters["expected"] == 1
    assert bench.counters["kernel_refused_expectation"] > 0


def test_what_is_decided_is_forgotten_when_no_program_can_be_looking_any_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expectations, "FORGET_SECONDS", 0.0)

    async def scenario() -> None:
        first, second = bench.expect(), bench.expect()
        first.settle()
        second.settle()
        assert set(bench.kernel.met) == {1, 2}
        bench.expect()
        assert set(bench.kernel.met) == set()

    run(scenario())
