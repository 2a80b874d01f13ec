"""Work in a thread: its items, its errors, and its end when the caller stops."""

import threading

import pytest

from telecine.base.background import in_background


def test_items_come_in_order_and_from_another_thread():
    def items():
        for number in range(5):
            yield number, threading.current_thread()

    result = list(in_background(items()))
    assert [number for number, _ in result] == list(range(5))
    assert threading.current_thread() not in [thread for _, thread in result]


def test_the_next_item_is_computed_while_the_caller_uses_one():
    is_next = threading.Event()

    def items():
        yield 1
        is_next.set()
        yield 2

    iterator = in_background(items())
    next(iterator)
    assert is_next.wait(timeout=10)
    assert list(iterator) == [2]


def test_an_error_is_raised_after_the_items_before_it():
    def items():
        yield 1
        raise OSError("the disk is full")

    iterator = in_background(items())
    assert next(iterator) == 1
    with pytest.raises(OSError, match="the disk is full"):
        next(iterator)


def test_the_thread_ends_and_closes_its_items_when_the_caller_stops():
    closed = []

    def items():
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    source = items()  # a reference, without which it is closed when it is freed
    iterator = in_background(source)
    next(iterator)
    before = threading.active_count()
    iterator.close()
    assert closed == [True]
    assert threading.active_count() < before
