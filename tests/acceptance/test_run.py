"""``freeloop run`` beside plain uvicorn: the same answers byte for byte, and all that it can be told."""

import base64
import gzip
import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
import textwrap
import time
from pathlib import Path

import pytest

from run_process import BOUND, Connection, Processes

APPS = Path(__file__).with_name("apps")
LOOPS = ("uvloop", "asyncio")
CLOSE = ("Connection: close",)


def request(method, path, *headers, body=b""):
    lines = [f"{method} {path} HTTP/1.1", "Host: test.example", *headers, *CLOSE]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def frame(opcode, payload):
    """Make a masked frame, as RFC 6455 wants it of clients; a mask of 0 leaves the payload as it is."""
    return bytes([0x80 | opcode, 0x80 | len(payload), 0, 0, 0, 0]) + payload


def handshake(path, *headers):
    key = base64.b64encode(b"0123456789abcdef").decode()
    lines = [f"GET {path} HTTP/1.1", "Host: test.example", "Connection: Upgrade", "Upgrade: websocket"]
    lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def multipart(*parts):
    body = b""
    for name, filename, kind, content in parts:
        body += (
            f'--limit\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n'.encode()
        )
        body += f"Content-Type: {kind}\r\n\r\n".encode() + content + b"\r\n"
    return body + b"--limit--\r\n"


JSON = "Content-Type: application/json"
EXCHANGES = {
    "plain_fastapi": [
        request("GET", "/items/7?q=abc"),
        request("GET", "/items/seven"),
        request("GET", "/items/7?q=toolong"),
        request("POST", "/items", JSON, body=b'{"name": "Lamp"}'),
        request("POST", "/items", JSON, body=b'{"price": 1}'),
        request("POST", "/items", JSON, body=b"{broken"),
        request("POST", "/items/", JSON, body=b'{"name": "x"}'),
        request("DELETE", "/items/7"),
        request("GET", "/depends"),
        request("GET", "/done"),
        request("GET", "/state"),
        request("GET", "/sync"),
        request("HEAD", "/sync"),
        request("GET", "/background"),
        request("GET", "/odd"),
        request("GET", "/refused"),
        request("GET", "/nowhere"),
        request("GET", "/bug"),
        request("GET", "/long"),
        request("GET", "/long", "Accept-Encoding: gzip"),
        request("GET", "/stream"),
        request("GET", "/stream", "Accept-Encoding: gzip"),
        request("GET", "/file"),
        request("GET", "/static/hello.txt"),
        request("GET", "/static/hello.txt", "Range: bytes=3-8"),
        request("HEAD", "/static/hello.txt"),
        request("GET", "/static/none.txt"),
        request("GET", "/static/../plain_fastapi.py"),
        request("GET", "/who", "X-Forwarded-For: 192.0.2.7", "X-Forwarded-Proto: https"),
        request("OPTIONS", "/items", "Origin: https://a.example", "Access-Control-Request-Method: POST"),
        request("OPTIONS", "/items", "Origin: https://b.example", "Access-Control-Request-Method: POST"),
        request("GET", "/sync", "Origin: https://a.example"),
        request("GET", "/openapi.json"),
        request("GET", "/docs"),
        request("POST", "/echo", body=b"bytes \x00\xff"),
        request("POST", "/echo", "Expect: 100-continue", body=b"expected"),
        request("POST", "/echo", "Transfer-Encoding: chunked") + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        request("GET", "/a%20b%2Fc?x=%C3%A9"),
        b"GET /sync HTTP/1.0\r\n\r\n",
        b"GET /sync HTTP/1.1\r\nHost: a\r\n\r\n" * 2 + request("GET", "/items/3"),  # in one connection
        handshake("/ws", "Sec-WebSocket-Protocol: chat")
        + frame(1, b"text")
        + frame(2, b"bytes")
        + frame(8, b""),
        handshake("/ws?token=wrong"),
        handshake("/nowhere"),
        handshake("/ws") + frame(1, b"text") + frame(8, b"\x03\xe8"),  # the client closes first
    ],
    "plain_starlette": [
        request("GET", "/"),
        request("POST", "/", JSON, body=b"[1, 2]"),
        request("PUT", "/"),
        request("GET", "/known"),
        request("GET", "/known", "Authorization: me"),
        request("GET", "/sync/a%20name"),
        request("GET", "/later"),
        request("GET", "/done"),
        request("GET", "/fail"),
        request("GET", "/away"),
        request("GET", "/deep/7"),
        request("GET", "/deep/x"),
        request("GET", "/sync/x/"),
        handshake("/ws") + frame(1, b"text") + frame(8, b""),
    ],
    "mounted": [
        request("GET", "/where"),
        request("GET", "/inner/where/x"),
        request("GET", "/inner/nowhere"),
        request("GET", "/openapi.json"),
        request("GET", "/inner/openapi.json"),
        request("GET", "/docs"),
        request("GET", "/inner/docs"),
        request("GET", "/where/"),
        handshake("/inner/ws") + frame(8, b""),
    ],
}
OPTIONS = {"mounted": ("--root-path", "/api")}
FORMS = [
    request(
        "POST", "/form", "Content-Type: application/x-www-form-urlencoded", body=b"name=M%C3%BCller&age=7"
    ),
    request("POST", "/form", "Content-Type: application/x-www-form-urlencoded", body=b"name=x"),
    request(
        *("POST", "/upload", "Content-Type: multipart/form-data; boundary=limit"),
        body=multipart(("file", "a.txt", "text/plain", b"content"), ("extra", "b", "text/plain", b"12345")),
    ),
]


def exchange(port, sent):
    """Send bytes and return all that comes until the server closes, without what differs by the clock."""
    with socket.create_connection(("127.0.0.1", port), BOUND) as sock:
        head, end, body = sent.partition(b"\r\n\r\n") if b"\r\nUpgrade:" in sent else (sent, b"", b"")
        sock.sendall(head + end)
        received = b""
        if body:  # uvicorn drops what comes together with the handshake
            while b"\r\n\r\n" not in received:
                received += sock.recv(65536)
            sock.sendall(body)
        received += b"".join(iter(lambda: sock.recv(65536), b""))
    received = re.sub(rb"(?i)\r\n(date|x-request-id): [^\r]*", b"", received)
    head, found, body = received.partition(b"\x1f\x8b\x08")
    if found and b"chunked" not in head:
        received = head + gzip.decompress(found + body)
    return re.sub(rb"\x1f\x8b\x08\x00.{4}", b"gzip", received, flags=re.DOTALL)  # its header has the time


@pytest.fixture
def processes():
    with Processes() as processes:
        yield processes


@pytest.fixture(scope="module", params=list(EXCHANGES))
def pair(request):
    """One app under uvicorn, and under the runner with each loop."""
    target = f"{request.param}:app"
    options = OPTIONS.get(request.param, ())
    with Processes() as processes:
        plain = processes.uvicorn(target, *options, cwd=APPS)
        ours = [processes.freeloop(target, *options, "--loop", loop, cwd=APPS) for loop in LOOPS]
        yield request.param, plain.port, [each.port for each in ours]
        for each in ours:
            assert each.stop(timeout=BOUND) == 0


def test_answers_are_those_of_plain_uvicorn_byte_for_byte(pair):
    kind, plain, ours = pair
    assert_same(plain, ours, EXCHANGES[kind])


def assert_same(plain, ours, exchanges):
    for sent in exchanges:
        expected = exchange(plain, sent)
        assert expected.startswith(b"HTTP/1.1 ")
        for loop, port in zip(LOOPS, ours, strict=True):
            assert (loop, sent[:60], exchange(port, sent)) == (loop, sent[:60], expected)


def test_forms_and_uploads_are_those_of_plain_uvicorn(pair):
    pytest.importorskip("python_multipart", reason="python-multipart is not installed")
    kind, plain, ours = pair
    if kind == "plain_fastapi":
        assert_same(plain, ours, FORMS)
        assert exchange(plain, FORMS[2]).endswith(b'["a.txt","text/plain","content",5]')


def test_each_answer_has_a_request_id(pair):
    _, _, ours = pair
    for port in ours:
        with Connection(socket.create_connection(("127.0.0.1", port), BOUND)) as client:
            assert client.get("/", headers=["X-Request-ID: mine"]).headers["x-request-id"] == "mine"


APP = """
from fastapi import FastAPI
app = FastAPI()
@app.get("/")
async def root(): return "{word}"
"""


@pytest.fixture
def folder(tmp_path):
    """Write files; return their folder."""

    def write(**files):
        for name, text in files.items():
            path = tmp_path / (name.replace("__", "/") + ".py")
            path.parent.mkdir(exist_ok=True)
            path.write_text(textwrap.dedent(text))
        return tmp_path

    return write


def app_text(word):
    return APP.format(word=word)


@pytest.mark.parametrize(
    ("target", "word"),
    [
        ("main.py", "main"),
        ("main", "main"),
        ("main:app", "main"),
        ("main.py:other", "other"),
        ("main:Holder.inner.app", "nested"),
        ("named", "named"),
        (None, "main"),
        ("factory:create --factory", "made"),
        ("factory:create", "made"),
        ("api/main.py", "found in a folder"),
    ],
)
def test_the_target_names_the_app(processes, folder, target, word):
    factory = f"def create():{textwrap.indent(app_text('made'), '    ')}    return app\n"
    cwd = folder(
        main=app_text("main")
        + "other = FastAPI()\n"
        + "other.get('/')(lambda: 'other')\n"
        + "class Holder:\n    class inner:\n        app = FastAPI()\n"
        + "Holder.inner.app.get('/')(lambda: 'nested')\n",
        named=app_text("named").replace("app", "service"),
        factory=factory,
        api__main=app_text("found in a folder"),
    )
    app = processes.freeloop(*(target or "").split(), cwd=cwd)
    assert app.get("/").json() == word


@pytest.mark.parametrize(
    ("cwd", "target"),
    [
        (APPS, "shop.main:app"),
        (APPS, "shop/main.py"),
        (APPS, "shop.main:Holder.app"),
        (APPS / "shop", "main.py"),
        (APPS.parent, "shop.main:create --factory --app-dir apps"),
    ],
)
def test_a_package_with_relative_imports_is_found_from_anywhere(processes, cwd, target):
    assert processes.freeloop(*target.split(), cwd=cwd).get("/").json() == "shop"


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("nowhere:app", "there is no module 'nowhere'"),
        ("nowhere.py", "there is no file"),
        ("good:other", "the module 'good' has no 'other'"),
        ("good:app.missing.x", "the module 'good' has no 'app.missing.x'"),
        ("empty", "the module 'empty' has no app"),
        ("several", "several apps: one, two"),
        ("good:NUMBER", "expected an ASGI app at 'good:NUMBER'"),
        ("good:wsgi", "expected an ASGI app at 'good:wsgi'"),
        ("good:app --factory", "--factory expects a function"),
        (":app", "expected module:attribute"),
        (".good:app", "expected module:attribute"),
        ("nowhere:app --workers 2", "there is no module 'nowhere'"),
        ("", "no app was named, and none of main.py"),
        ("good:app --ssl-certfile none.pem", "--ssl-certfile none.pem"),
        ("good:app --log-config none.ini", "--log-config none.ini"),
        ("good:app --http none", "--http none"),
        ("good:app --uds /nowhere/at/all", "cannot listen on /nowhere/at/all"),
        ("good:app --deadline soon", "FREELOOP_DEADLINE='soon'"),
    ],
)
def test_a_wrong_target_or_option_is_one_clear_line(processes, folder, target, says):
    cwd = folder(
        good=app_text("good") + "NUMBER = 1\ndef wsgi(environ, start): ...\n",
        empty="",
        several="from fastapi import FastAPI\none, two = FastAPI(), FastAPI()\n",
    )
    app = processes.freeloop(*target.split(), cwd=cwd)
    assert app.wait(BOUND) == 1
    lines = [line for line in app.lines if not line.startswith("{")]
    assert says in lines[0]
    assert lines[0].startswith("freeloop: ")
    assert not any("Traceback" in line for line in app.lines)
    assert len(set(lines)) == 1  # with workers, each says it


@pytest.mark.parametrize("option", ["--header nothing", "--ssl-keyfile a.pem", "--reload --workers 2"])
def test_options_that_make_no_sense_are_refused(processes, option):
    app = processes.freeloop("mounted:app", *option.split(), cwd=APPS)
    assert app.wait(BOUND) == 2
    assert not any("Traceback" in line for line in app.lines)


def test_a_module_that_fails_shows_its_own_traceback(processes, folder):
    cwd = folder(broken="import json\n\njson.loads('{')\n", incomplete="import surely_not_there\n")
    app = processes.freeloop("broken:app", cwd=cwd)
    assert app.wait(BOUND) != 0
    assert any("broken.py" in line for line in app.lines)
    assert "JSONDecodeError" in app.lines[-1]
    app = processes.freeloop("incomplete:app", cwd=cwd)
    assert app.wait(BOUND) != 0
    assert "No module named 'surely_not_there'" in app.lines[-1]


def test_a_lifespan_that_fails_ends_the_start(processes, folder):
    cwd = folder(
        main="""
        from contextlib import asynccontextmanager
        from fastapi import FastAPI
        @asynccontextmanager
        async def lifespan(app):
            raise RuntimeError("no resource")
            yield
        app = FastAPI(lifespan=lifespan)
        """
    )
    app = processes.freeloop(cwd=cwd)
    assert app.wait(BOUND) != 0
    app.wait_line("no resource")


def test_a_port_in_use_is_one_line(processes):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        app = processes.freeloop("mounted:app", "--port", port, cwd=APPS, port=False)
        assert app.wait(BOUND) == 1
    assert len(app.lines) == 1
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in app.lines[0]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_unix_socket_takes_the_place_of_a_port(processes, folder, loop):
    cwd = folder(main=app_text("unix"))
    for _ in range(2):  # the second time, the socket of the first lies there
        app = processes.freeloop("main.py", "--uds", "s", "--loop", loop, cwd=cwd, port=False)
        app.wait_line("unix:s")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(BOUND)
            sock.connect(str(cwd / "s"))
            assert Connection(sock).get("/").json() == "unix"
        assert app.stop(timeout=BOUND) == 0


def test_two_workers_answer_and_stop_in_order(processes, folder):
    cwd = folder(
        main="""
        import os
        from fastapi import FastAPI
        app = FastAPI()
        @app.get("/")
        async def root(): return os.getpid()
        """
    )
    app = processes.freeloop("main.py", "--workers", "2", cwd=cwd)
    assert app.port
    until = time.monotonic() + BOUND
    pids = set()
    while len(pids) < 2:
        pids.add(app.get("/").json())
        assert time.monotonic() < until
    assert app.process.pid not in pids
    assert app.stop(timeout=BOUND) == 0
    assert not any(record.get("level") == "error" for record in app.records)


def test_reload_picks_up_a_change_also_with_a_stream_open(processes, folder):
    stream = """
    import asyncio
    from fastapi.responses import StreamingResponse
    @app.get("/stream")
    async def stream():
        async def body():
            while True:
                yield b"data: x\\n\\n"
                await asyncio.sleep(0.05)
        return StreamingResponse(body(), media_type="text/event-stream")
    """
    cwd = folder(main=app_text("before") + textwrap.dedent(stream))
    app = processes.freeloop("main.py", "--reload", cwd=cwd)
    assert app.get("/").json() == "before"
    app.connect().ask("/stream").read_until(b"data: x")
    folder(main=app_text("afterwards"))
    until = time.monotonic() + BOUND
    while (answer := app.get("/").json()) != "afterwards":
        assert time.monotonic() < until, answer
    assert app.stop(timeout=BOUND) == 0


def test_headers_are_added(processes):
    app = processes.freeloop(
        *("mounted:app", "--header", "X-One: 1", "--header", "X-Two:a:b", "--no-server-header"), cwd=APPS
    )
    headers = app.get("/where").headers
    assert (headers["x-one"], headers["x-two"]) == ("1", "a:b")
    assert "server" not in headers


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed: no certificate")
def test_tls(processes, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    app = processes.freeloop(
        "mounted:app", "--ssl-keyfile", key, "--ssl-certfile", certificate, cwd=APPS, FREELOOP_DRAIN_DELAY=0
    )
    app.wait_line(r"https://127\.0\.0\.1:\d+")
    context = ssl.create_default_context(cafile=certificate)
    silent = app.connect()  # never comes to a session
    with (
        socket.create_connection(("127.0.0.1", app.port), BOUND) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        answer = Connection(secured).get("/where").json()
        assert answer[2].startswith("https://")
    began = time.monotonic()
    assert app.stop(timeout=BOUND) == 0
    assert time.monotonic() - began < 5
    silent.sock.close()


@pytest.mark.parametrize("loop", LOOPS)
def test_an_asgi_app_of_any_other_kind_runs(processes, folder, loop):
    cwd = folder(
        bare="""
        async def app(scope, receive, send):
            assert scope["type"] == "http"
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
            await send({"type": "http.response.body", "body": b"bare"})
        """
    )
    app = processes.freeloop("bare:app", "--loop", loop, cwd=cwd)
    answer = app.get("/livez")  # no page of ours stands before the app's own
    assert (answer.status, answer.body) == (200, b"bare")
    assert app.stop(timeout=BOUND) == 0


def test_an_app_with_a_kit_of_its_own_keeps_it(processes, folder):
    cwd = folder(
        own="""
        from fastapi import FastAPI
        from freeloop import Freeloop, current_scope
        app = FastAPI()
        kit = Freeloop(app)
        @app.get("/")
        async def root(): return [current_scope().route, app.state.freeloop is kit, kit.gate.running]
        """
    )
    app = processes.freeloop("own:app", cwd=cwd)
    assert app.get("/").json() == ["/", True, 1]
    assert app.stop(timeout=BOUND) == 0
    assert [record["event"] for record in app.records].count("request") == 1


def test_readiness_and_liveness_are_there_where_the_app_has_none(processes, folder):
    cwd = folder(main=app_text("x"))
    app = processes.freeloop(cwd=cwd)
    assert [app.get(path).status for path in ("/livez", "/readyz", "/metrics")] == [200, 200, 200]
    assert b'freeloop_requests_total{method="GET",route="' in app.get("/metrics").body


def test_ctrl_c_ends_it_quietly(processes, folder):
    app = processes.freeloop(cwd=folder(main=app_text("x")))
    assert app.get("/").status == 200
    assert app.stop(signal.SIGINT, timeout=BOUND) == 0
    assert not any("Traceback" in line for line in app.lines)


def test_log_lines_are_json(processes, folder):
    app = processes.freeloop(cwd=folder(main=app_text("x")))
    app.get("/")
    app.stop(timeout=BOUND)
    for line in app.lines:
        json.loads(line)


@pytest.mark.parametrize("option", [(), ("--workers", "2")], ids=["one process", "two workers"])
def test_what_looks_like_a_setting_and_is_none_is_told_once(processes, folder, option):
    app = processes.freeloop(*option, cwd=folder(main=app_text("x")), FREELOOP_DEADLIN=5)
    assert app.get("/").status == 200
    assert app.stop() == 0
    lines = [record for record in app.records if "FREELOOP_DEADLIN" in record.get("event", "")]
    assert [(line["level"], line["event"]) for line in lines] == [
        ("warning", "FREELOOP_DEADLIN is not a setting; is FREELOOP_DEADLINE meant?")
    ]
