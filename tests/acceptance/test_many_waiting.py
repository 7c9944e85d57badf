"""Ten thousand requests wait at once in one process; the benchmark measures the same."""

import asyncio
import resource
import sys

import pytest

from service_process import ROOT

COUNT = 10_000
REQUEST = b"GET /async-task HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture
def _many_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < COUNT + 500:
        pytest.skip(f"this machine allows {hard} open files, {COUNT + 500} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (COUNT + 500, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("_many_files")
async def test_ten_thousand_wait_and_all_are_answered(start):
    # From the soft limit that most systems give: the service raises it by itself.
    shell = ("bash", "-c", 'ulimit -Sn 1024 && exec "$0" "$@"', sys.executable, str(ROOT / "run.py"))
    service = await asyncio.to_thread(start, command=shell)
    url = await asyncio.to_thread(lambda: service.url)
    host, port = url.removeprefix("http://").split(":")
    # As many as the listen queue holds; what is above, the kernel would drop, and ask again a second later.
    connecting = asyncio.Semaphore(500)

    async def open_one():
        async with connecting:
            return await asyncio.open_connection(host, int(port))

    async def ask(reader, writer):
        writer.write(REQUEST)
        try:
            return await reader.read()
        finally:
            writer.close()

    async with asyncio.timeout(100):
        connections = await asyncio.gather(*(open_one() for _ in range(COUNT)))
        answers = await asyncio.gather(*(ask(*connection) for connection in connections))
    assert sum(answer.startswith(b"HTTP/1.1 200 ") for answer in answers) == COUNT
    assert sum(answer.endswith(b'{"message":"Task Complete"}') for answer in answers) == COUNT
    assert await asyncio.to_thread(service.stop) == 0
