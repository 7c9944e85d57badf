"""No number of the benchmarks' pages is typed by hand: each block is what its result renders to."""

import importlib
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from bench import __main__ as command
from bench import duration
from bench.blocks import Verdict
from bench.cases import CHECKED, NAMES, Run, overhead, overload, watch
from bench.report import (
    compare,
    compare_most,
    describe_machine,
    has_block,
    judge,
    judge_least,
    name_versions,
    replace_block,
    say_rounds,
)
from bench.routing import measure_routing
from bench.servers import Peer
from bench.viewers import document_viewers, follow, summarize_viewers
from bench.wrk import document_by_both, read_rate, summarize_by_both

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
READMES = {language: page.read_text("utf-8") for language, page in command.READMES.items()}
IN_READMES = [
    name for name in NAMES if hasattr(importlib.import_module(f"bench.cases.{name}"), "summarize_for_readme")
]
ANEW = "write the page anew: python3 run.py bench --render"


def block(text, name):
    found = re.search(rf"<!-- bench:{name} -->\n(.*?)\n<!-- /bench:{name} -->", text, re.DOTALL)
    assert found, f"the page has no markers of the case {name}"
    return found[1]


def read(name):
    result = command.read_result(name)
    assert result is not None, f"bench/results has no {name}.json: python3 run.py bench {name}"
    return result


@pytest.mark.parametrize("name", NAMES)
def test_a_case_shows_what_was_measured(name):
    result = read(name)
    case = importlib.import_module(f"bench.cases.{name}")
    text = f"{case.document(result)}\n\n{describe_machine(result['machine'])}"
    assert block(PAGE, name) == text.strip(), ANEW


@pytest.mark.parametrize("name", IN_READMES)
def test_the_readmes_show_what_was_measured(name):
    result = read(name)
    case = importlib.import_module(f"bench.cases.{name}")
    for language, readme in READMES.items():
        assert block(readme, name) == case.summarize_for_readme(result, language).strip(), ANEW


def test_the_page_says_how_long_the_last_results_took():
    results = {name: result for name in NAMES if (result := command.read_result(name)) is not None}
    assert block(PAGE, "duration") == duration.document(results, command.read_result("short")), ANEW


@pytest.mark.parametrize("name", ["docs/benchmarks.md", "README.md", "README.zh-TW.md"])
def test_what_only_a_measurement_knows_stands_in_no_sentence(name):
    """Seconds and ms are settings as well; µs and the size of a process are not."""
    text = (ROOT / name).read_text("utf-8")
    typed = re.sub(r"<!-- bench:([\w-]+) -->.*?<!-- /bench:\1 -->", "", text, flags=re.DOTALL)
    assert not re.findall(r"\d+(?:\.\d+)? (?:µs|KB|MB|answers/s|requests/s)", typed)


@pytest.mark.parametrize("name", CHECKED)
def test_what_is_checked_has_a_check(name):
    assert callable(importlib.import_module(f"bench.cases.{name}").check)


@pytest.mark.parametrize(("micros", "wrong"), [(199.0, 0), (201.0, 1)])
def test_overhead_is_wrong_beyond_its_bound(monkeypatch, micros, wrong):
    measured = {overhead.PLAIN.name: {"full": [100.0]}, overhead.OURS.name: {"full": [micros]}}
    monkeypatch.setattr(overhead, "_measure_cpu", lambda *_: (measured, 1.0))
    assert len(overhead.check(None)) == wrong


@pytest.mark.parametrize(
    ("micros", "unnamed", "wrong"),
    [(129.0, (), 0), (131.0, (), 1), (129.0, ("json",), 1), (131.0, ("json",), 2)],
)
def test_watch_is_wrong_beyond_its_bound_or_where_a_line_is_not_named(monkeypatch, micros, unnamed, wrong):
    measured = {watch.UNWATCHED.name: {"cpu": [100.0]}, watch.OURS.name: {"cpu": [micros]}}

    def question(peer, ways, innocent):
        return Verdict(found=tuple(ways), named=tuple(way for way in ways if way not in unnamed), false=())

    monkeypatch.setattr(watch, "_measure_cost", lambda *_: measured)
    monkeypatch.setattr(watch, "_question", question)
    assert len(watch.check(None)) == wrong


@pytest.mark.parametrize(
    ("low", "high", "most", "least"),
    [
        (1.0, 2.0, "kept", "**missed**"),
        (3.0, 4.0, "**missed**", "kept"),
        (2.0, 3.0, "kept in some rounds, **missed** in others", "kept in some rounds, **missed** in others"),
    ],
)
def test_a_target_is_kept_in_all_rounds_or_not_at_all(low, high, most, least):
    measured = {"median": (low + high) / 2, "low": low, "high": high}
    assert judge(measured, 2.5) == most
    assert judge_least(measured, 2.5) == least


def of(low, median, high):
    return {"low": low, "median": median, "high": high}


# Ours in the middle, one apart on each side, one that overlaps, and one apart that looks the same.
SIDES = {
    "less": of(1.0, 2.0, 3.0),
    "ours": of(4.0, 5.0, 5.1),
    "more": of(7.0, 1_008.0, 1_009.0),
    "near": of(5.05, 6.0, 7.0),
    "same": of(5.2, 5.3, 5.4),
}


def test_who_has_less_is_ahead_where_less_is_better():
    assert compare(SIDES, "ours", "CPU time", "µs", 0) == [
        (
            "CPU time, in µs: ours (5) is ahead of more (1,008); **less (2) is ahead** of it; "
            "near (6) and same (5) are level with it."
        )
    ]


def test_who_has_more_is_ahead_where_more_is_better():
    assert compare_most(SIDES, "ours", "Answers a second") == [
        (
            "Answers a second: ours (5) is ahead of less (2); **more (1,008) is ahead** of it; "
            "near (6) and same (5) are level with it."
        )
    ]


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([], []),
        (["less"], ["CPU time, in µs: **less (2.0) is ahead** of ours (5.0)."]),
        (["near"], ["CPU time, in µs: near (6.0) is level with ours (5.0)."]),
        (
            ["more", "less"],
            ["CPU time, in µs: ours (5.0) is ahead of more (1,008.0); **less (2.0) is ahead** of it."],
        ),
    ],
)
def test_a_side_on_which_nobody_stands_is_not_named(others, said):
    chosen = {name: SIDES[name] for name in ["ours", *others]}
    assert compare(chosen, "ours", "CPU time", "µs", 1) == said


def test_several_who_are_ahead_are_all_named():
    rates = {name: of(rate, rate, rate) for name, rate in [("ours", 1), ("a", 2), ("b, tuned", 3), ("c", 4)]}
    assert compare_most(rates, "ours", "Answers a second") == [
        "Answers a second: **a (2), b, tuned (3) and c (4) are ahead** of ours (1)."
    ]


def test_the_versions_that_a_result_has_are_named():
    assert name_versions({"versions": {"nginx": "1.2.3", "Redis": None}}) == ["With nginx 1.2.3."]
    assert name_versions({"versions": {"Redis": None}}) == []
    assert name_versions({}) == []


@pytest.mark.parametrize(
    ("rounds", "of_each", "said"),
    [
        (2, {}, "Median of 2 rounds, in"),
        (2, {"ours": 2, "a": 2}, "Median of 2 rounds, in"),
        (2, {"ours": 2, "a": 1, "b, tuned": 1}, "Median of 2 rounds (one round of a; b, tuned), in"),
        (1, {"ours": 1, "a": 1}, "Median of 1 round, in"),
    ],
)
def test_who_had_one_round_is_named(rounds, of_each, said):
    peers = {name: {"rounds": number} for name, number in of_each.items()}
    assert say_rounds(rounds, peers) == f"{said} brackets the lowest and the highest."
    assert say_rounds(rounds, {name: {} for name in of_each}) == say_rounds(rounds)  # results of before


def test_who_is_measured_once_has_a_part_in_the_first_round(tmp_path):
    ours, base, other = (Peer(name, ()) for name in ("ours", "base", "other"))
    turns = []

    def measure(peer):
        turns.append(peer.name)
        return {}

    run = Run(short=True, rounds=3, only=[], data_dir=tmp_path, files=0, say=lambda _: None)
    measured = run.alternate((ours, base, other), measure, once=(other,))
    assert turns == ["ours", "base", "other", "base", "ours", "ours", "base"]
    assert {name: len(rounds) for name, rounds in measured.items()} == {"ours": 3, "base": 3, "other": 1}


def test_only_the_block_of_its_case_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- bench:wait -->\nold\n<!-- /bench:wait -->\nb\n")
    assert replace_block(page, "wait", "new\n")
    assert page.read_text() == "a\n<!-- bench:wait -->\nnew\n<!-- /bench:wait -->\nb\n"
    assert not replace_block(page, "tasks", "new")


@pytest.mark.parametrize(
    "text", ["", "<!-- bench:wait -->", "<!-- /bench:wait -->\n<!-- bench:wait -->", "<!-- bench:tasks -->"]
)
def test_a_page_without_both_markers_in_their_order_has_no_block(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    assert not has_block(page, "wait")
    assert not has_block(tmp_path / "nowhere.md", "wait")


@pytest.mark.parametrize("name", IN_READMES)
def test_a_readme_without_the_markers_ends_the_command(tmp_path, monkeypatch, name):
    page = tmp_path / "README.md"
    page.write_text("no block")
    monkeypatch.setitem(command.READMES, "en", page)
    with pytest.raises(SystemExit, match=f"README.md: expected the markers <!-- bench:{name} -->"):
        command.render(name, {})  # before it is drawn, or written anywhere


def test_no_case_is_measured_where_one_has_no_markers(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(command, "measure", lambda *_: pytest.fail("it was measured"))
    monkeypatch.setattr("sys.argv", ["bench", "query"])
    with pytest.raises(SystemExit, match="bench:query"):
        command.main()


def test_a_case_without_a_result_is_told_when_all_are_rendered(tmp_path, monkeypatch):
    rendered = []
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(command, "render", lambda name, _: rendered.append(name))
    monkeypatch.setattr(command, "render_duration", lambda: None)
    (tmp_path / "items.json").write_text("{}")
    with pytest.raises(SystemExit, match="bench wait scale"):
        command.render_again(["wait", "items", "scale"])
    assert rendered == ["items"]


def took(minutes, rounds=2):
    return {"took": {"seconds": 60 * minutes, "rounds": rounds}}


NO_SHORT = "How long all cases take with `--short` was not kept yet; the target is less than 5 minutes."


@pytest.mark.parametrize(
    ("results", "short", "said"),
    [
        (
            {"wait": took(12), "fetch": took(20)},
            took(4.5),
            [
                "The last results took 32.0 minutes in all, with 2 rounds;",
                "the target, less than 40, is kept.",
                "Each in minutes: `wait` 12.0, `fetch` 20.0.",
                "With `--short`, all cases took 4.5 minutes; the target, less than 5, is kept.",
            ],
        ),
        (
            {"wait": took(12, 1), "fetch": took(28)},
            took(5),
            [
                "The last results took 40.0 minutes in all, with 1 to 2 rounds;",
                "the target, less than 40, is **missed**.",
                "Each in minutes: `wait` 12.0, `fetch` 28.0.",
                "With `--short`, all cases took 5.0 minutes; the target, less than 5, is **missed**.",
            ],
        ),
        (
            {"wait": took(12), "fetch": {}},
            None,
            [
                "In minutes, with 2 rounds, the last results took: `wait` 12.0; not known of `fetch`.",
                NO_SHORT,
            ],
        ),
        (
            {"wait": {}},
            None,
            [
                "The last results do not say how long they took; the target is less than 40 minutes in all.",
                NO_SHORT,
            ],
        ),
    ],
)
def test_how_long_it_took_is_said_as_far_as_it_is_known(results, short, said):
    assert duration.document(results, short) == " ".join(said)


def test_the_readme_says_what_ten_times_the_load_does():
    def step(share, **others):
        return {"steps": [{"load": 10.0, "share": of(share, share, share), **others}]}

    shed = {"shed": of(0.9, 0.9, 0.9)}
    late = {"p99": of(0.2, 0.2, 0.2), "p99_ratio": of(1.94, 1.94, 1.94)}
    peers = {"freeloop run": step(0.99, **shed, **late), "uvicorn": step(0.01)}
    assert overload.summarize_for_readme({"peers": peers}, "en").replace("\n", " ") == (
        "At 10 times the requests that a resource can serve, plain uvicorn answers 1% of what is possible "
        "within 1 s, and `freeloop run` 99% (p99 200 ms, 1.94 times that without load); 90% of all requests "
        "are refused with 503 at once."
    )
    for number in ("10", "1%", "99%", "200 ms", "1.94", "90%"):
        assert number in overload.summarize_for_readme({"peers": peers}, "zh-TW")
    peers["freeloop run"] = step(0.0, **shed, p99=None, p99_ratio=None)
    assert "p99 none)" in overload.summarize_for_readme({"peers": peers}, "en")


def test_what_fastapi_takes_is_measured_of_routes_that_answer():
    assert set(measure_routing(batches=1)) == {"parameters", "dependencies", "router"}


WRK = """Running 1s test @ http://127.0.0.1:8000/item
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.01ms    1.02ms  18.30ms   90.51%
    Req/Sec    16.21k     1.02k   17.80k    70.00%
  16131 requests in 1.01s, 2.31MB read
Requests/sec:  15971.28
Transfer/sec:      2.29MB
"""


def test_what_wrk_says_is_read():
    assert read_rate(WRK) == 15971.28


@pytest.mark.parametrize(
    "said",
    [
        "",
        "unable to connect to 127.0.0.1:1 Connection refused",
        WRK.replace("Requests", "  Non-2xx or 3xx responses: 3\nRequests"),
        WRK.replace("Requests", "  Socket errors: connect 0, read 1, write 0, timeout 0\nRequests"),
    ],
)
def test_what_wrk_was_not_answered_with_success_is_no_rate(said):
    with pytest.raises(RuntimeError, match="expected wrk to be answered with success"):
        read_rate(said)


def test_what_wrk_gets_stands_beside_ours():
    def slices(*rates):
        return {"rate": list(rates)}

    rounds = [
        {"uvicorn": {"ours": slices(100.0, 110.0), "wrk": slices(150.0, 165.0)}},
        {"uvicorn": {"ours": slices(200.0, 200.0), "wrk": slices(200.0, 200.0)}},
    ]
    text = document_by_both("4.1.0", summarize_by_both(rounds))
    assert "by wrk 4.1.0" in text
    assert "| uvicorn | 152 (105–200) | 179 (158–200) | 1.25 (1.00–1.50) |" in text


@pytest.mark.parametrize(
    ("rates", "verdict"),
    [((99.0, 98.5), "kept"), ((97.0, 97.5), "**missed**"), ((99.0, 97.0), "kept in some rounds")],
)
def test_viewers_cost_what_is_answered_less(rates, verdict):
    rounds = [
        {"closed": of_slices([100.0] * 3, 200.0), "open": of_slices([50.0, rate, 120.0], 203.0)}
        for rate in rates
    ]
    summary = summarize_viewers(rounds)
    lost = (summary["lost"]["low"], summary["lost"]["high"])
    assert lost == pytest.approx((100 - max(rates), 100 - min(rates)))
    text = document_viewers(summary)
    assert f"at most 2 %, is {verdict}" in text
    assert "takes 1.5 (1.5–1.5) % more CPU" in text


def of_slices(rates, micros):
    return {"rate": rates, "cpu": [micros] * len(rates)}


def test_without_wrk_the_page_says_so():
    result = read("overhead")
    assert "was not installed" in overhead.document({**result, "wrk": {"version": None, "peers": {}}})


def test_viewers_say_that_all_see_the_page_and_end_with_a_stream(monkeypatch):
    said, opened = [], threading.Event()

    def note(*words, **_):
        said.extend(words)
        opened.set()

    def answer():
        streams = [server.accept()[0] for _ in range(2)]
        for stream in streams:
            assert not said
            stream.recv(1_000)
            stream.sendall(b"retry: 1000\n\ndata: page\n\nevent: sam")
            stream.sendall(b"ple\ndata: {}\n\n")
        opened.wait(30)
        for stream in streams:
            stream.close()

    monkeypatch.setattr("bench.viewers.print", note, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ConnectionError, match="has ended"):
            follow(server.getsockname()[1], 2)
        thread.join()
    assert said == ["open"]


def test_a_command_that_is_no_case_is_known_by_its_name():
    said = subprocess.run(
        [sys.executable, "-m", "bench", "tables", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.startswith("usage: python -m bench tables")
