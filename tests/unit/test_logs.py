"""Logs: one JSON line a record with the request id, and a writer that blocks nobody."""

import asyncio
import io
import json
import logging
import os
import threading

import pytest

from freeloop.logs import LogWriter, configure_logs, log_request
from freeloop.records import RequestRecord
from freeloop.scope import Scope


@pytest.fixture
def logs():
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    writer = configure_logs(format="json", level="info", stream=stream)

    def lines():
        writer.close()
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    yield lines
    writer.close()
    root.handlers, _ = before, root.setLevel(level)


def test_a_record_is_one_json_line(logs):
    logging.getLogger("x.y").warning("watch %s", "out\nnow", extra={"rows": 3, "odd": object})
    logging.getLogger("x.y").debug("unseen")
    (line,) = logs()
    assert line["event"] == "watch out\nnow"
    assert (line["level"], line["logger"], line["rows"]) == ("warning", "x.y", 3)
    assert line["time"].endswith("Z")


@pytest.mark.parametrize(("terminal", "colours"), [(True, True), (False, False)])
def test_a_terminal_gets_coloured_lines_and_nobody_else(logs, terminal, colours):
    class Stream(io.StringIO):
        def isatty(self):
            return terminal

    stream = Stream()
    writer = configure_logs(format="auto", level="info", stream=stream)
    logging.getLogger("x").info("seen", extra={"request_id": "r-1"})
    writer.close()
    line = stream.getvalue()
    assert ("\x1b[" in line) is colours
    assert line.startswith("{") is not terminal
    assert "seen" in line
    assert "r-1" in line


def test_an_exception_is_in_its_line(logs):
    try:
        {}["gone"]
    except KeyError:
        logging.getLogger("x").exception("failed")
    (line,) = logs()
    assert "KeyError: 'gone'" in line["exception"]


def test_a_record_bears_the_request_id(logs):
    async def inside():
        Scope("r-1").enter()
        logging.getLogger("x").info("inside")

    asyncio.run(inside())
    (line,) = logs()
    assert line["request_id"] == "r-1"


def test_an_odd_record_is_written_somehow_and_ends_nothing(logs):
    class Odd:
        def __repr__(self):
            raise RuntimeError("no words")

    log = logging.getLogger("x")
    log.info("a lone surrogate: \udc80", extra={"large": 2**70})
    log.info("odd", extra={"odd": Odd()})
    log.info("the last")
    first, second, last = logs()
    assert (first["event"], first["large"]) == ("a lone surrogate: \udc80", 2**70)
    assert "no words" in second["event"]
    assert last["event"] == "the last"


def test_an_access_record_has_its_fields(logs):
    log_request(RequestRecord("r-2", "GET", "/items/7", "/items/{item_id}", 200, 0.01234, "127.0.0.1"))
    (line,) = logs()
    del line["time"]
    assert line == {
        "event": "request",
        "level": "info",
        "logger": "freeloop.access",
        "request_id": "r-2",
        "method": "GET",
        "path": "/items/7",
        "route": "/items/{item_id}",
        "status": 200,
        "duration_ms": 12.34,
        "client": "127.0.0.1",
    }


def test_a_reader_that_does_not_read_blocks_nobody_and_drops_are_counted():
    reading, writing = os.pipe()
    with open(writing, "w") as pipe, open(reading) as reader:  # noqa: PTH123 - file descriptors
        writer = LogWriter(pipe, capacity=50)
        writer.setFormatter(logging.Formatter("%(message)s"))
        record = logging.LogRecord("x", logging.INFO, "", 0, "y" * 10_000, None, None)
        for _ in range(500):
            writer.handle(record)
        assert writer.dropped >= 400
        drain = threading.Thread(target=lambda: [None for line in reader if "dropped" not in line])
        drain.start()
        writer.close()
        pipe.close()
        drain.join(10)
        assert not drain.is_alive()
