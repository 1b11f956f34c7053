"""Random bytes that are fetched many at a time: none is given twice, in whatever thread or process."""

import os
import threading

from gateway.crypto.randomness import RandomBytes

MANY = 5_000


def test_none_is_given_twice_by_threads_at_once() -> None:
    source, given = RandomBytes(12), list[list[bytes]]()
    start = threading.Barrier(4)

    def take() -> None:
        start.wait()
        given.append([source.take() for _ in range(MANY)])

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pieces = [piece for each in given for piece in each]
    assert len(pieces) == 4 * MANY and len(set(pieces)) == len(pieces) and {len(piece) for piece in pieces} == {12}


def test_a_forked_process_gets_others() -> None:
    source = RandomBytes(12)
    source.take()  # hundreds more are there
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, source.take())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    theirs = os.read(reading, 100)
    os.close(reading)
    assert len(theirs) == 12 and theirs != source.take()
