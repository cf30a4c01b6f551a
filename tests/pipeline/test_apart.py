"""Work in a process apart: its values come back in order, and whatever ends it is one line for that item alone."""

import os
import signal
import threading
import time

from pipeline.common.apart import apart
from pipeline.common.errors import InputError
from tests.helpers.processes import tree

PARENT = os.getpid()
TEXT = "\u202e\n\ud7ff"
REASONS = {
    "refuse": "no such thing",
    "crash": "damaged: the library that reads it crashes (SIGSEGV)",
    "leave": "damaged: the library that reads it crashes (exit code 3)",
    "loop": "damaged: reading it takes over 0.2 s",
    "wait": "damaged: reading it takes over 0.2 s",
    "fill": "damaged: reading it takes over 64 MiB",
    "fail": "damaged: the library that reads it crashes (exit code 1)",
}


def work(item):
    if item == "refuse":
        raise InputError("no such thing")
    if item == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "leave":
        os._exit(3)
    while item == "loop":
        pass
    if item == "wait":
        time.sleep(600)
    if item == "fill":
        return len(bytearray(1 << 30))
    if item == "fail":
        raise KeyError(item)
    return {"item": item, "parts": [os.getpid() != PARENT, None, 1.5, TEXT]}


def done(item):
    return {"item": item, "parts": [True, None, 1.5, TEXT]}


def run(items):
    return list(apart(work, items, seconds=0.2, mib=64))


def test_values_come_in_order_and_a_problem_stands_in_the_place_of_its_own_item():
    items = ["a", *REASONS, "b", "crash", "crash", "c"]
    for item, found in zip(items, run(items), strict=True):
        if item in REASONS:
            assert isinstance(found, InputError)
            assert str(found) == REASONS[item]
        else:
            assert found == done(item)


def test_nothing_is_done_for_nothing():
    assert run([]) == []


def test_who_stops_asking_leaves_no_process():
    before = set(tree(os.getpid()))
    answers = apart(work, ["a", "loop"], seconds=60, mib=64)
    assert next(answers) == done("a")
    assert set(tree(os.getpid())) - before
    answers.close()
    assert not set(tree(os.getpid())) - before


def test_several_threads_and_the_children_themselves_may_ask_at_a_time():
    found = {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: run([n, "crash", n])})) for n in range(7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(found[n][::2] == [done(n)] * 2 for n in range(7))
    (inner,) = apart(lambda item: [str(one) for one in run([item, "crash"])], ["x"], seconds=2, mib=256)
    assert inner == [str(done("x")), REASONS["crash"]]


def test_ctrl_c_which_reaches_the_child_too_is_left_to_the_parent():
    def interrupted(item):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        return item

    assert list(apart(interrupted, [1], seconds=1, mib=64)) == [1]
