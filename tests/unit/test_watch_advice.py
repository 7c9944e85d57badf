"""What the watchdog advises: each row of the table, by calls as they stand in code, and nothing in vain."""

import concurrent.futures
import gzip
import hashlib
import http.client
import json
import linecache
import lzma
import multiprocessing
import os
import pathlib
import pickle
import queue
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import urllib.request
import zlib

import pytest

from freeloop.watch import advice
from freeloop.watch.advice import advise
from freeloop.watch.callee import name_calls
from freeloop.watch.stack import Line

# What the calls below are looked up in, as in the globals of an app.
NAMES = (
    concurrent.futures, gzip, hashlib, http.client, json, lzma, multiprocessing, os, pathlib, pickle, queue,
    re, shutil, socket, sqlite3, subprocess, tempfile, threading, time, urllib.request, zlib,
)  # fmt: skip
lock = threading.Lock()
inbox = queue.Queue()
future = concurrent.futures.Future()
connection = http.client.HTTPConnection("localhost")
pattern = re.compile("a")
numbers = [2, 1]
path = pathlib.Path()

# Calls as the app writes them, by what makes them block, and a part of what is to be said.
CALLS = {
    ("waiting", "await asyncio.sleep"): ["time.sleep(1)"],
    ("waiting", "outbound client"): ["urllib.request.urlopen(url)", "connection.request('GET', '/')"],
    ("waiting", "getaddrinfo(host, port)"): [
        "socket.getaddrinfo(host, 80)",
        "socket.gethostbyname(host)",
        "socket.getfqdn()",
    ],
    ("waiting", "create_subprocess_exec"): [
        "subprocess.run(command)",
        "subprocess.check_output(command)",
        "os.system(command)",
        "os.popen(command)",
        "os.waitpid(pid, 0)",
    ],
    ("waiting", "its connection included"): ["sqlite3.connect(file)"],
    ("computing", "its connection included"): ["sqlite3.connect(file)"],
    ("waiting", "asyncio.wrap_future"): [
        "lock.acquire()",
        "inbox.get()",
        "future.result()",
        "concurrent.futures.wait([future])",
        "multiprocessing.Process.join(process)",
    ],
    ("waiting", "work on files"): ["open(file).read()", "path.read_bytes()", "os.listdir(folder)"],
    ("computing", "work on files"): ["shutil.copytree(one, other)", "tempfile.mkdtemp()", "os.fsync(file)"],
    ("computing", "it lets go of the GIL"): [
        "hashlib.pbkdf2_hmac('sha256', secret, salt, rounds)",
        "hashlib.sha256(data)",
        "zlib.compress(data)",
        "gzip.compress(data)",
        "lzma.compress(data)",
    ],
    ("gil", "remove nested repetition"): ["pattern.match(text)", "re.sub(old, new, text)"],
    ("gil", "Send less at a time"): ["json.dumps(rows)", "pickle.dumps(rows)"],
    ("gil", "ORDER BY"): ["sorted(rows)", "numbers.sort()", "max(rows)", "sum(rows)"],
}
# What is known by the frames of a library, which need not be installed.
LIBRARIES = {
    ("waiting", "outbound client"): ["requests/sessions", "urllib3/connectionpool", "httpx/_client"],
    ("waiting", "'db: Db' for PostgreSQL"): [
        "psycopg2/extras",
        "pymysql/cursors",
        "sqlalchemy/engine/base",
        "pymongo/pool",
        "redis/connection",
    ],
    ("computing", "it lets go of the GIL"): ["bcrypt/__init__", "argon2/_password_hasher"],
    ("computing", "ProcessPoolExecutor"): ["pandas/core/frame", "pandas/io/parsers", "numpy/linalg"],
    ("gil", "A thread will not help"): ["pandas/core/groupby/groupby", "networkx/algorithms/dag"],
    ("waiting", "Await something that waits without blocking"): ["paramiko/channel"],
}  # fmt: skip
TOLD = [(*key, call) for key, calls in CALLS.items() for call in calls]
TOLD_OF_LIBRARIES = [(*key, module) for key, modules in LIBRARIES.items() for module in modules]


@pytest.fixture(autouse=True)
def _no_blocking():
    """In place of the detector for all tests, which puts others in place of the functions that block."""


@pytest.fixture
def names_of(monkeypatch):
    """What an expression of the app calls, as the watchdog names it."""

    def names_of(expression):
        monkeypatch.setitem(linecache.cache, "<app>", (len(expression), None, [expression + "\n"], "<app>"))
        return name_calls(Line("<app>", 1, "build"), sys._getframe())

    return names_of


def library(module):
    return Line(f"{sysconfig.get_path('purelib')}/{module}.py", 1, "call")


@pytest.mark.parametrize(("cause", "part", "call"), TOLD)
def test_a_call_has_the_advice_that_helps(names_of, cause, part, call):
    assert part in advise(cause, (), names_of(call))


@pytest.mark.parametrize(("cause", "part", "module"), TOLD_OF_LIBRARIES)
def test_a_library_has_the_advice_that_helps(cause, part, module):
    # What it does at its innermost is waiting for a socket, or nothing that is known.
    assert part in advise(cause, (library("unknown"), library(module)), ())


def test_each_row_of_the_table_is_met_here(names_of):
    said = {advise(cause, (), names_of(call)) for cause, _, call in TOLD}
    said |= {advise(cause, (library(module),), ()) for cause, _, module in TOLD_OF_LIBRARIES}
    assert {remedy.says for remedy in advice._TABLE} <= said


@pytest.mark.parametrize("remedy", advice._TABLE, ids=lambda remedy: remedy.calls[0])
def test_no_row_hides_another(remedy):
    for cause in remedy.causes:
        for call in remedy.calls:
            assert advise(cause, (), (f"{call}call" if call.endswith(".") else call,)) == remedy.says


def test_what_holds_the_gil_is_given_to_no_thread_and_what_waits_to_no_process(names_of):
    for _, _, call in TOLD:
        names = names_of(call)
        held, waited = advise("gil", (), names), advise("waiting", (), names)
        assert "A thread will not help" in held
        assert "run_sync" not in held
        assert "ProcessPoolExecutor" not in waited
        # The loop had nothing to do: whatever the thread called, it is the thread that has to go.
        assert advise("thread", (), names) == advise("thread", (), ())
        assert "in place of a thread" in advise("thread", (), names)


def test_short_steps_that_follow_each_other_have_a_remedy_of_their_own():
    assert "asyncio.Semaphore" in advise("computing", (), (), steps=40)
    assert "asyncio.Semaphore" not in advise("computing", (), (), steps=1)
    # What is known of the call helps more, however many there are.
    assert advise("computing", (), ("json.dumps",), steps=40) == advise("computing", (), ("json.dumps",))
