"""Work on two things at a time: order, errors, and how far ahead."""

import threading

import pytest

from rlhf_data.ahead import ahead


def test_things_come_in_order_none_left_out():
    assert list(ahead(range(100))) == list(range(100))
    assert list(ahead([None, None])) == [None, None]
    assert list(ahead([])) == []


def test_one_thing_is_made_while_another_is_used_and_no_more():
    made, begun = [], threading.Event()

    def things():
        for k in range(4):
            made.append(k)
            if k == 1:
                begun.set()
            yield k

    source = ahead(things())
    assert next(source) == 0
    assert begun.wait(10)  # the second was begun without being asked for
    assert made == [0, 1]
    assert [next(source) for _ in range(3)] == [1, 2, 3]


def test_what_making_a_thing_raises_comes_in_its_place():
    def things():
        yield 1
        raise ValueError("no second")

    source = ahead(things())
    assert next(source) == 1
    with pytest.raises(ValueError, match="no second"):
        next(source)


def test_one_who_stops_early_leaves_nothing_running():
    closed = threading.Event()

    def things():
        try:
            yield from range(10)
        finally:
            closed.set()

    before = threading.active_count()
    source = ahead(things())
    assert next(source) == 0
    source.close()
    del source
    assert closed.wait(10)
    assert threading.active_count() == before
