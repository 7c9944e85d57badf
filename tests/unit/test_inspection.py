"""The socket by which a process is asked: what it answers, whom it refuses, and what is left of dead ones."""

import asyncio
import contextlib
import json
import os
import pwd
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

import freeloop.inspection.client
from freeloop.errors import InspectionFailed
from freeloop.inspection import ask, find_processes, open_socket
from freeloop.inspection.folder import list_sockets, path_of
from freeloop.inspection.server import _LONGEST_QUESTION
from freeloop.testing import eventually


@pytest.fixture
def folder():
    # Not pytest's: the path of a socket must be short.
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        yield Path(path) / "sockets"


def count(question):
    for number in range(question.get("to", 3)):
        yield json.dumps({"number": number}).encode()


@contextlib.asynccontextmanager
async def opened(folder, name="shop", **questions):
    """Open a socket; give its path once it is there."""
    before = set(await asyncio.to_thread(lambda: list_sockets(folder)))
    async with open_socket(folder, name, {"count": count, **questions}):

        async def found():
            return set(await asyncio.to_thread(list_sockets, folder)) - before

        await eventually(found)
        (path,) = await found()
        yield path


def asked(path, question, **options):
    return list(ask(path, question, **options))


async def test_a_question_is_answered_line_by_line(folder):
    async with opened(folder) as path:
        assert await asyncio.to_thread(asked, path, "count", to=2) == [{"number": 0}, {"number": 1}]


async def test_a_process_says_which_it_is(folder):
    async with opened(folder) as path:
        (found,) = await asyncio.to_thread(find_processes, folder)
    assert (found.path, found.pid, found.app) == (path, os.getpid(), "shop")
    assert found.command == " ".join(sys.argv)[:500]
    assert found.title == f"shop ({found.command})"
    assert found.matches("Shop")
    assert found.matches(str(os.getpid()))
    assert found.matches("pytest")
    assert not found.matches("another")
    assert not found.matches("1")


async def test_two_apps_of_one_process_have_a_socket_each_which_go_with_them(folder):
    async with opened(folder, "one") as first, opened(folder, "two") as second:
        assert first.name == f"{os.getpid()}.sock"
        assert second.name == f"{os.getpid()}-1.sock"
        found = await asyncio.to_thread(find_processes, folder)
        assert {process.app for process in found} == {"one", "two"}
    assert not await asyncio.to_thread(lambda: list(folder.iterdir()))


async def test_it_answers_while_the_loop_is_blocked(folder):
    answers = []
    blocked = threading.Event()

    def client(path):
        blocked.wait(10)
        answers.append(asked(path, "count", to=1))

    def block():
        blocked.set()
        until = time.monotonic() + 10
        while not answers and time.monotonic() < until:
            continue

    async with opened(folder) as path:
        thread = threading.Thread(target=client, args=(path,))
        thread.start()
        block()
        thread.join()
    assert answers == [[{"number": 0}]]


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"nonsense\n",
        b"{}\n",
        b'{"ask": "secrets"}\n',
        b'{"ask": ["tree"]}\n',
        b"[1]\n",
        b'"count"\n',
        b"\xff\xfe\n",
        b"[" * 4000 + b"\n",
        b"x" * (_LONGEST_QUESTION + 1),
        b'{"ask": "count"',  # and then nothing more
    ],
)
async def test_what_is_no_question_gets_one_line_and_hurts_nobody(folder, line):
    def send(path):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(path))
            client.sendall(line)
            return b"".join(iter(lambda: client.recv(65536), b""))

    async with opened(folder) as path:
        answer = await asyncio.to_thread(send, path)
        assert await asyncio.to_thread(asked, path, "count", to=1) == [{"number": 0}]
    (told,) = answer.splitlines()
    assert "about, count" in json.loads(told)["error"]


async def test_a_client_that_goes_in_the_middle_hurts_nobody(folder):
    def leave(path):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(path))
            client.sendall(b'{"ask": "count", "to": 1000000}\n')
            client.recv(1)

    async with opened(folder) as path:
        await asyncio.to_thread(leave, path)
        assert await asyncio.to_thread(asked, path, "count", to=1) == [{"number": 0}]


async def test_an_answer_that_fails_says_so_and_the_next_one_comes(folder, caplog):
    def fail(question):
        yield b'{"number": 0}'
        raise RuntimeError("out of order")

    async with opened(folder, fail=fail) as path:
        with pytest.raises(InspectionFailed, match="fail could not be answered: RuntimeError: out of order"):
            await asyncio.to_thread(asked, path, "fail")
        assert await asyncio.to_thread(asked, path, "count", to=1) == [{"number": 0}]
    assert "a question could not be answered" in caplog.text


async def test_an_answer_that_is_too_long_is_cut_and_says_so(folder):
    def endless(question):
        while True:
            yield b'{"x": "' + b"x" * 1_000_000 + b'"}'

    received = []

    def read(path):
        received.extend(len(line["x"]) for line in ask(path, "endless"))

    async with opened(folder, endless=endless) as path:
        with pytest.raises(InspectionFailed, match="cut"):
            await asyncio.to_thread(read, path)
    assert 60_000_000 < sum(received) < 70_000_000


async def test_who_does_not_answer_in_time_is_named(folder):
    release = threading.Event()

    def slow(question):
        release.wait(10)
        yield b"{}"

    async with opened(folder, slow=slow) as path:
        try:
            with pytest.raises(InspectionFailed, match=rf"{os.getpid()} did not answer within 0.2 s"):
                await asyncio.to_thread(asked, path, "slow", timeout=0.2)
        finally:
            release.set()


async def test_only_the_owner_may_ask(folder):
    async with opened(folder) as path:
        modes = await asyncio.to_thread(
            lambda: [stat.S_IMODE(each.stat().st_mode) for each in (path, folder)]
        )
    assert modes == [0o600, 0o700]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_is_refused_also_where_the_folder_is_open(folder):
    def try_as_nobody(path):
        folder.parent.chmod(0o755)
        folder.chmod(0o755)
        program = (
            "import os, socket, sys; os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[1]));"
            "socket.socket(socket.AF_UNIX).connect(sys.argv[3])"
        )
        nobody = pwd.getpwnam("nobody")
        command = [sys.executable, "-c", program, str(nobody.pw_uid), str(nobody.pw_gid), str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)

    async with opened(folder) as path:
        tried = await asyncio.to_thread(try_as_nobody, path)
    assert tried.returncode == 1
    assert "PermissionError" in tried.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
async def test_a_folder_of_somebody_else_is_not_used(folder, caplog):
    def give_away():
        folder.mkdir()
        os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)

    await asyncio.to_thread(give_away)
    async with open_socket(folder, "shop", {}):
        await eventually(lambda: "nobody can look into this process" in caplog.text)
    assert not await asyncio.to_thread(lambda: list(folder.iterdir()))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_nobody_asks_sockets_in_a_folder_of_somebody_else(folder):
    def try_as_nobody():
        folder.parent.chmod(0o755)
        folder.mkdir(mode=0o755)
        program = (
            "import os, sys; from pathlib import Path; from freeloop.inspection import find_processes;"
            "os.setuid(int(sys.argv[1])); find_processes(Path(sys.argv[2]))"
        )
        command = [sys.executable, "-c", program, str(pwd.getpwnam("nobody").pw_uid), str(folder)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)

    tried = await asyncio.to_thread(try_as_nobody)
    assert "InspectionFailed: nothing is asked: expected" in tried.stderr


async def test_where_nothing_ever_ran_nothing_is_found(folder):
    assert await asyncio.to_thread(find_processes, folder) == []


@pytest.mark.parametrize("place", ["file", "long"])
async def test_where_no_socket_can_be_a_warning_says_why_and_the_app_runs(folder, caplog, place):
    def prepare():
        folder.parent.joinpath("file").write_text("")
        return {"file": folder.parent / "file", "long": folder / ("x" * 100)}[place]

    at = await asyncio.to_thread(prepare)
    async with open_socket(at, "shop", {}):
        await eventually(lambda: "nobody can look into this process" in caplog.text)


async def test_without_a_folder_there_is_no_socket():
    threads = threading.active_count()
    async with open_socket(None, "shop", {}):
        assert threading.active_count() == threads


def make_dead(path):
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


async def test_the_socket_of_a_dead_process_is_removed_and_a_file_that_is_none_stays(folder):
    def look():
        make_dead(path_of(folder, 12345))
        (folder / "notes.sock").write_text("mine")
        found = find_processes(folder)
        return found, sorted(path.name for path in folder.iterdir())

    assert await asyncio.to_thread(look) == ([], ["notes.sock"])


async def test_a_place_that_is_taken_while_somebody_looks_is_kept(folder, monkeypatch):
    path = path_of(folder, 12345)
    with socket.socket(socket.AF_UNIX) as alive:

        def take(*_, **__):
            path.unlink()
            alive.bind(str(path))
            alive.listen(1)
            raise ConnectionRefusedError  # as the dead one did, a moment before

        def look():
            make_dead(path)
            with monkeypatch.context() as patch:
                patch.setattr(freeloop.inspection.client, "ask", take)
                find_processes(folder)
            return path.is_socket(), sorted(each.name for each in folder.iterdir())

        assert await asyncio.to_thread(look) == (True, [path.name])


async def test_the_place_of_a_dead_process_with_the_same_number_is_taken(folder):
    await asyncio.to_thread(make_dead, path_of(folder, os.getpid()))
    async with open_socket(folder, "shop", {}):

        async def answers():
            return [each.app for each in await asyncio.to_thread(find_processes, folder)] == ["shop"]

        await eventually(answers)
