"""Every way to block the event loop, each in a route of its own, and some that only look like one.

The line that blocks ends with the comment ``# <name of the way>``.
"""

# ruff: noqa: ASYNC210, ASYNC221, ASYNC230, ASYNC251, FURB192, S310, S311 - what they warn of is the subject

import asyncio
import contextlib
import ctypes
import hashlib
import json
import multiprocessing
import os
import random
import re
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import requests
from fastapi import FastAPI, Request

LONG = 0.3  # seconds that each way blocks, about
FOLDER = Path(tempfile.mkdtemp())

app = FastAPI()
app.state.arrived = 0
app.state.all_there = asyncio.Event()


@app.get("/sleep")
async def sleep(seconds: float = LONG):
    time.sleep(seconds)  # sleep


@app.get("/requests")
async def fetch(upstream: str):
    requests.get(upstream, timeout=10)  # requests


@app.get("/cpu-loop")
async def compute(seconds: float = LONG):
    end = time.thread_time() + seconds
    while time.thread_time() < end:  # cpu-loop
        continue


@app.get("/regular-expression")
async def match(request: Request):
    EVIL.match(request.app.state.text)  # regular-expression


EVIL = re.compile(r"(a+)+$")


@app.get("/json")
async def encode(request: Request):
    json.dumps(request.app.state.rows)  # json


@app.get("/big-integers")
async def raise_to_power(request: Request):
    return (3**request.app.state.exponent).bit_length()  # big-integers


@app.get("/sorted")
async def sort(request: Request):
    return sorted(request.app.state.numbers)[0]  # sorted


@app.get("/pbkdf2")
async def derive(request: Request):
    hashlib.pbkdf2_hmac("sha256", b"secret", b"salt", request.app.state.rounds)  # pbkdf2


@app.get("/sqlite")
async def query():
    with contextlib.closing(sqlite3.connect(FOLDER / "locked", isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        waiting = contextlib.closing(sqlite3.connect(FOLDER / "locked", timeout=LONG))
        with waiting as connection, contextlib.suppress(sqlite3.OperationalError):
            connection.execute("CREATE TABLE late (id)")  # sqlite


@app.get("/dns")
async def look_up(port: int):
    ask_only(port)
    with contextlib.suppress(socket.gaierror):
        socket.getaddrinfo("nobody.example", 80)  # dns


def ask_only(port):
    """Let the C library ask one name server, on a port of loopback, once and for a second."""
    libc = ctypes.CDLL(None)
    getattr(libc, "__res_init")()
    libc.__res_state.restype = ctypes.c_void_p
    state = libc.__res_state()
    # struct __res_state: int retrans, retry; unsigned long options; int nscount; sockaddr_in nsaddr_list[3]
    ctypes.c_int.from_address(state).value = 1
    ctypes.c_int.from_address(state + 4).value = 1
    ctypes.c_int.from_address(state + 16).value = 1
    address = socket.AF_INET.to_bytes(2, "little") + port.to_bytes(2, "big") + bytes([127, 0, 0, 1])
    ctypes.memmove(state + 20, address, len(address))


@app.get("/file")
async def read():
    buffer = bytearray(2**24)
    end = time.thread_time() + LONG
    with Path("/dev/zero").open("rb", buffering=0) as file:
        while file.readinto(buffer) and time.thread_time() < end:  # file
            continue


@app.get("/lock")
async def wait_for_lock():
    lock = threading.Lock()
    lock.acquire()
    threading.Timer(LONG, lock.release).start()
    lock.acquire()  # lock


@app.get("/subprocess")
async def run():
    subprocess.run(["sleep", str(LONG)], check=True)  # subprocess


@app.get("/library")
async def fetch_deep(upstream: str):
    urllib.request.urlopen(upstream)  # library


@app.get("/gathered")
async def gather():
    await asyncio.gather(step(0.0), step(LONG), step(0.0))


async def step(seconds):
    await asyncio.sleep(0.01)
    time.sleep(seconds)  # gathered


@app.get("/callback")
async def call_later():
    asyncio.get_running_loop().call_later(0.05, block)


def block():
    time.sleep(LONG)  # callback


@app.get("/thread")
def hold_gil(request: Request):
    EVIL.match(request.app.state.text)  # thread


@app.get("/own-thread")
async def start_thread(request: Request):
    over, loop = asyncio.Event(), asyncio.get_running_loop()
    arguments = (request.app.state.text, lambda: loop.call_soon_threadsafe(over.set))
    threading.Thread(target=crunch, args=arguments, name="cruncher", daemon=True).start()
    await over.wait()


def crunch(text, tell):
    time.sleep(0.05)  # until the loop is idle
    # In one line, since the watchdog may look only once the match is over; only a live thread has a name.
    return EVIL.match(text), tell(), time.sleep(60)  # own-thread


@app.get("/starvation")
async def take_short_step(request: Request, seconds: float = 0.01, together: int = 40):
    state = request.app.state
    state.arrived += 1
    if state.arrived == together:
        state.arrived = 0
        state.all_there.set()
        state.all_there = asyncio.Event()
    else:
        await state.all_there.wait()
    end = time.thread_time() + seconds
    while time.thread_time() < end:  # starvation
        continue


@app.get("/catastrophe")
async def match_for_seconds(request: Request):
    began = time.monotonic()
    EVIL.match("aaaa" + request.app.state.text)  # catastrophe
    return {"began": began, "ended": time.monotonic()}


@app.get("/crowd")
async def take_ordinary_step(request: Request):
    await take_short_step(request, 0.0003, 100)


@app.get("/awaits")
async def wait(seconds: float = LONG):
    await asyncio.sleep(seconds)


@app.get("/in-a-thread")
def wait_in_thread():
    time.sleep(LONG)


@app.get("/computes-in-a-thread")
def derive_in_thread(request: Request):
    hashlib.pbkdf2_hmac("sha256", b"secret", b"salt", request.app.state.rounds)


@app.get("/in-a-process")
async def compute_in_process(request: Request):
    processes = request.app.state.processes
    await asyncio.get_running_loop().run_in_executor(processes, sum, range(20_000_000))


@app.get("/findings")
async def show(request: Request):
    watch = request.app.state.freeloop.watch
    return {
        "findings": [asdict(found) for found in watch.findings()],
        "blocks": [[*labels, count] for labels, count in watch.blocks.items()],
        "stalls": watch.stalls,
        "stalled": watch.stalled,
    }


@app.get("/prepare")
def prepare(request: Request):
    """Find out how much each takes on this machine, and start what takes a while to start."""
    state = request.app.state
    # Started with nothing else in it: to fork a process with threads may hang, and blocks all of them.
    state.processes = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent)
    state.processes.submit(sum, ()).result(60)
    state.text = grow(lambda n: EVIL.match("a" * n + "b"), 16, lambda n: n + 1, lambda n: "a" * n + "b")
    state.rows = grow(json.dumps, [{"id": 1, "name": "x"}] * 20_000, lambda rows: rows * 2)
    state.exponent = grow(lambda n: 3**n, 100_000, lambda n: n * 3 // 2)
    state.numbers = grow(sorted, [random.random() for _ in range(50_000)], double)
    state.rounds = grow(lambda n: hashlib.pbkdf2_hmac("sha256", b"s", b"s", n), 50_000, lambda n: n * 2)


def end_with_parent():
    """In the process of the pool: end also where the server is killed."""
    threading.Thread(
        target=lambda: (multiprocessing.parent_process().join(), os._exit(0)), daemon=True
    ).start()


def double(numbers):
    return [random.random() for _ in range(2 * len(numbers))]


def grow(function, size, bigger, make=lambda size: size):
    while True:
        began = time.thread_time()
        function(size)
        if time.thread_time() - began > LONG * 0.8:
            return make(size)
        size = bigger(size)
