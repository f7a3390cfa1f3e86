"""No two buffers that live at one time may overlap, and plans are near the least possible."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tbn_compile.targets.mcu.compiler.memory_plan import Lifetime, live_bytes, plan_memory


@st.composite
def lifetimes(draw):
    first = draw(st.integers(0, 12))
    return Lifetime(draw(st.integers(0, 500)), first, first + draw(st.integers(0, 6)))


@given(st.lists(lifetimes(), max_size=14), st.sampled_from([1, 4, 8]))
def test_buffers_that_live_together_lie_apart(buffers, alignment):
    plan = plan_memory(buffers, alignment)

    places = [
        (offset, offset + each.nbytes) for offset, each in zip(plan.offsets, buffers, strict=True)
    ]
    for index, (begin, end) in enumerate(places):
        assert begin % alignment == 0
        assert end <= plan.nbytes
        for other in range(index):
            if buffers[index].overlaps(buffers[other]):
                apart = end <= places[other][0] or places[other][1] <= begin
                assert apart or begin == end or places[other][0] == places[other][1]


@given(st.lists(lifetimes(), min_size=1, max_size=14))
def test_a_plan_needs_at_least_what_is_live_at_once(buffers):
    plan = plan_memory(buffers, 1)

    assert plan.nbytes >= max(live_bytes(buffers, step) for step in range(20))
    assert plan.nbytes <= sum(each.nbytes for each in buffers)


def test_a_chain_of_layers_takes_turns_in_two_places():
    chain = [Lifetime(100, step, step + 1) for step in range(10)]

    assert plan_memory(chain, 4).nbytes == 200


def test_a_small_buffer_fills_a_gap():
    buffers = [Lifetime(100, 0, 3), Lifetime(40, 0, 1), Lifetime(60, 0, 3), Lifetime(40, 2, 3)]

    assert plan_memory(buffers, 4).nbytes == 200


def test_nothing_needs_no_workspace():
    assert plan_memory([], 8).nbytes == 0


def test_offsets_and_size_are_aligned():
    plan = plan_memory([Lifetime(3, 0, 1), Lifetime(5, 0, 1)], 8)

    assert sorted(plan.offsets) == [0, 8]
    assert plan.nbytes == 16
