"""The faulty network, in front of a server that answers with what it was sent: each fault, and its end."""

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest

from freeloop.database import Address
from freeloop.testing import Fault, FaultyNetwork, eventually, plan_faults

BOUND = 5
SILENCE = 0.15


class Echo:
    """Answers each byte with itself, and remembers how its connections ended."""

    def __init__(self):
        self.heard = b""
        self.sizes = []
        self.ends = []
        self.answers = True

    async def serve(self, reader, writer):
        try:
            while data := await reader.read(65536):
                self.heard += data
                self.sizes.append(len(data))
                if self.answers:
                    writer.write(data)
                    await writer.drain()
            self.ends.append("FIN")
        except ConnectionResetError:
            self.ends.append("RST")
        finally:
            writer.close()


@pytest.fixture
async def echo():
    echo = Echo()
    async with await asyncio.start_server(echo.serve, "127.0.0.1", 0) as server:
        echo.upstream = server.sockets[0].getsockname()
        yield echo


@asynccontextmanager
async def connected(network):
    async with asyncio.timeout(BOUND):
        reader, writer = await asyncio.open_connection(network.host, network.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def ask(connection, data=b"question"):
    reader, writer = connection
    writer.write(data)
    async with asyncio.timeout(BOUND):
        return await reader.readexactly(len(data))


async def is_silent(reader):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(SILENCE):
            await reader.read(1)
    return True


async def read_to_the_end(reader):
    """Return what still came, and whether it ended with FIN or RST."""
    data = b""
    try:
        async with asyncio.timeout(BOUND):
            while piece := await reader.read(65536):
                data += piece
    except ConnectionResetError:
        return data, "RST"
    return data, "FIN"


async def test_a_good_network_changes_nothing(echo):
    data = bytes(range(256)) * 4096
    async with FaultyNetwork(echo.upstream) as network, connected(network) as (reader, writer):
        writer.write(data)
        writer.write_eof()
        assert await read_to_the_end(reader) == (data, "FIN")
        assert echo.heard == data
        assert network.passed == {"client": len(data), "server": len(data)}
        writer.close()
        await eventually(lambda: network.connections == 0)
        assert network.accepted == 1


async def test_it_reaches_a_unix_socket(tmp_path):
    path = tmp_path / "socket"

    def answer(listening):
        connection, _ = listening.accept()
        with connection:
            connection.sendall(connection.recv(100))

    with socket.socket(socket.AF_UNIX) as listening:
        listening.settimeout(BOUND)
        listening.bind(str(path))
        listening.listen()
        # In a thread: both loops look at the file where they close such a server, which blocks.
        answered = asyncio.create_task(asyncio.to_thread(answer, listening))
        async with FaultyNetwork(path) as network, connected(network) as connection:
            assert await ask(connection) == b"question"
        await answered


@pytest.mark.parametrize(("reset", "end"), [(True, "RST"), (False, "FIN")])
async def test_cut_ends_both_sides_of_every_connection_and_a_new_one_is_made(echo, reset, end):
    async with FaultyNetwork(echo.upstream) as network:
        async with connected(network) as first, connected(network) as second:
            assert await ask(first) == await ask(second) == b"question"
            network.cut(reset=reset)
            assert await read_to_the_end(first[0]) == (b"", end)
            assert await read_to_the_end(second[0]) == (b"", end)
            await eventually(lambda: echo.ends == [end, end])
        async with connected(network) as third:
            assert await ask(third) == b"question"


@pytest.mark.parametrize(("reset", "end"), [(True, "RST"), (False, "FIN")])
async def test_truncate_lets_so_many_bytes_pass_and_no_more(echo, reset, end):
    async with FaultyNetwork(echo.upstream) as network, connected(network) as connection:
        assert await ask(connection) == b"question"
        network.truncate(3, reset=reset)
        connection[1].write(b"another question")
        assert await read_to_the_end(connection[0]) == (b"ano", end)
        await eventually(lambda: len(echo.ends) == 1)


async def test_truncate_on_the_way_to_the_server_counts_what_the_server_gets(echo):
    echo.answers = False  # an answer on its way to a closed connection would end it with RST
    async with FaultyNetwork(echo.upstream) as network, connected(network) as connection:
        await eventually(lambda: network.connections == 1)
        network.truncate(5, toward="server", reset=False)
        connection[1].write(b"another question")
        await eventually(lambda: echo.ends == ["FIN"])
        assert echo.heard == b"anoth"


async def test_a_stall_tells_nobody_and_loses_nothing(echo):
    async with FaultyNetwork(echo.upstream) as network, connected(network) as connection:
        assert await ask(connection) == b"question"
        network.stall()
        connection[1].write(b"held")
        assert await is_silent(connection[0])
        assert echo.heard == b"question"
        async with connected(network) as fresh, asyncio.timeout(BOUND):
            fresh[1].write(b"fresh")
            assert await is_silent(fresh[0])
            assert network.accepted == 2
            await network.heal()
            assert await connection[0].readexactly(4) == b"held"
            assert await fresh[0].readexactly(5) == b"fresh"


async def test_healing_without_what_stands_is_for_new_ones_only(echo):
    async with FaultyNetwork(echo.upstream) as network, connected(network) as old:
        assert await ask(old) == b"question"
        network.stall()
        old[1].write(b"held")
        await network.heal(standing=False)
        async with connected(network) as fresh:
            assert await ask(fresh) == b"question"
        assert await is_silent(old[0])


async def test_a_stall_of_the_old_ones_leaves_new_ones_alone(echo):
    async with FaultyNetwork(echo.upstream) as network, connected(network) as old:
        assert await ask(old) == b"question"
        network.stall(fresh=False)
        old[1].write(b"held")
        assert await is_silent(old[0])
        async with connected(network) as fresh:
            assert await ask(fresh) == b"question"


async def test_a_stalled_connection_can_be_cut(echo):
    async with FaultyNetwork(echo.upstream) as network, connected(network) as connection:
        assert await ask(connection) == b"question"
        network.stall()
        connection[1].write(b"lost")
        network.cut()
        assert await read_to_the_end(connection[0]) == (b"", "RST")
        assert b"lost" not in echo.heard


async def test_refused_is_refused_until_healed_and_leaves_what_stands(echo):
    async with FaultyNetwork(echo.upstream) as network, connected(network) as standing:
        port = network.port
        assert await ask(standing) == b"question"
        network.refuse()
        await asyncio.sleep(0)
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                async with connected(network):
                    pass
        assert await ask(standing) == b"question"
        await network.heal()
        assert network.port == port
        async with connected(network) as fresh:
            assert await ask(fresh) == b"question"


async def test_a_delay_holds_each_piece(echo):
    loop = asyncio.get_running_loop()
    async with FaultyNetwork(echo.upstream) as network, connected(network) as connection:
        assert await ask(connection) == b"question"
        network.delay(0.1)
        started = loop.time()
        assert await ask(connection) == b"question"
        # There and back. A timer may be early by the tick of its clock.
        assert loop.time() - started > 0.19
        network.delay(0)
        started = loop.time()
        for _ in range(20):
            assert await ask(connection) == b"question"
        assert loop.time() - started < 0.1 * 20


async def test_split_sends_small_pieces(echo):
    async with FaultyNetwork(echo.upstream) as network, connected(network) as connection:
        network.split(3)
        assert await ask(connection, b"question" * 20) == b"question" * 20
        assert len(echo.sizes) > 20
        assert min(echo.sizes) == 1


async def test_a_server_that_is_not_there_shows_as_a_reset(free_tcp_port):
    async with (
        FaultyNetwork(("127.0.0.1", free_tcp_port)) as network,
        connected(network) as (reader, _),
    ):
        assert await read_to_the_end(reader) == (b"", "RST")
        await eventually(lambda: network.connections == 0)


async def test_its_end_ends_what_stands_and_stalls(echo):
    async with FaultyNetwork(echo.upstream) as network:
        reader, writer = await asyncio.open_connection(network.host, network.port)
        await ask((reader, writer))
        network.stall()
        writer.write(b"held")
        other = await asyncio.open_connection(network.host, network.port)
        await eventually(lambda: network.accepted == 2)
    assert await read_to_the_end(reader) == (b"", "RST")
    assert await read_to_the_end(other[0]) == (b"", "RST")
    writer.close()
    other[1].close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(network.host, network.port)


@pytest.mark.parametrize(("kind", "end"), [("reset", "RST"), ("close", "FIN")])
async def test_a_plan_ends_the_connection_that_it_names_at_its_byte(echo, kind, end):
    def plan(number):
        return (Fault(kind, after=11),) if number == 1 else ()

    async with (
        FaultyNetwork(echo.upstream, plan=plan) as network,
        connected(network) as spared,
        connected(network) as meant,
    ):
        assert await ask(spared, b"0123456789" * 10) == b"0123456789" * 10
        meant[1].write(b"0123456789" * 10)
        assert await read_to_the_end(meant[0]) == (b"01234567890", end)
        assert await ask(spared) == b"question"


async def test_a_planned_stall_ends_by_itself_or_by_healing(echo):
    def plan(number):
        return (Fault("stall", after=4, toward="server", seconds=SILENCE * 2 if number == 0 else None),)

    async with (
        FaultyNetwork(echo.upstream, plan=plan) as network,
        connected(network) as short,
        connected(network) as long,
    ):
        for reader, writer in (short, long):
            writer.write(b"0123")
            assert await reader.readexactly(4) == b"0123"
            writer.write(b"45")
        assert await is_silent(short[0])
        async with asyncio.timeout(BOUND):
            assert await short[0].readexactly(2) == b"45"
        assert await is_silent(long[0])
        await network.heal()
        async with asyncio.timeout(BOUND):
            assert await long[0].readexactly(2) == b"45"


async def test_planned_pieces_begin_at_their_byte(echo):
    def plan(_):
        return (Fault("split", after=100, toward="server", size=7),)

    async with FaultyNetwork(echo.upstream, plan=plan) as network, connected(network) as connection:
        assert await ask(connection, b"x" * 149) == b"x" * 149
        assert echo.sizes[0] == 100
        assert sum(echo.sizes[1:]) == 49
        assert max(echo.sizes[1:]) < 49


async def test_healing_is_the_end_of_the_plan(echo):
    async with FaultyNetwork(echo.upstream, plan=lambda _: (Fault("reset", after=4),)) as network:
        async with connected(network) as spared:
            await eventually(lambda: network.connections == 1)
            await network.heal()
            assert await ask(spared) == b"question"
        async with connected(network) as fresh:
            assert await ask(fresh) == b"question"


def test_a_plan_is_the_same_for_its_seed_and_another_for_another():
    plans = [[plan_faults(seed)(number) for number in range(50)] for seed in (1, 1, 2)]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]
    # Not by the order of asking either.
    late = plan_faults(1)
    assert [late(number) for number in reversed(range(50))] == plans[0][::-1]


def test_a_plan_keeps_to_its_limits_and_uses_what_it_may():
    faults = [
        fault
        for seed in range(50)
        for number in range(10)
        for fault in plan_faults(seed, after=300, delay=0.5, stall=2)(number)
    ]
    assert {fault.kind for fault in faults} == {"reset", "close", "stall", "delay", "split"}
    assert {fault.toward for fault in faults} == {"client", "server"}
    assert all(0 <= fault.after <= 300 for fault in faults)
    assert all(fault.seconds <= 0.5 for fault in faults if fault.kind == "delay")
    assert all(fault.seconds <= 2 for fault in faults if fault.kind == "stall")
    assert {fault.kind for fault in plan_faults(1, share=1, kinds=["close"])(0)} == {"close"}
    assert not any(plan_faults(1, share=0)(number) for number in range(50))


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "reset", "after": -1}, {"kind": "split", "size": 0}, {"kind": "delay"}],
)
def test_a_fault_that_cannot_happen_is_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        Fault(**wrong)


def test_an_address_keeps_all_but_its_place():
    network = FaultyNetwork.in_front_of(Address(host="/run/there", port=5433))
    assert str(network._upstream) == "/run/there/.s.PGSQL.5433"
    network = FaultyNetwork.in_front_of(Address(dsn="postgresql://me:secret@there:5433/mine"))
    assert network._upstream == ("there", 5433)
    network.port = 1
    address = network.reach(Address(dsn="postgresql://me:secret@there:5433/mine?application_name=x"))
    assert address.place == "127.0.0.1:1/mine"
    (arguments,) = address.attempts()
    assert (arguments["user"], arguments["password"]) == ("me", "secret")


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"])
async def test_it_resets_and_closes_on_asyncios_own_loop_too(echo, anyio_backend):
    async with FaultyNetwork(echo.upstream) as network:
        for reset, end in ((True, "RST"), (False, "FIN")):
            async with connected(network) as connection:
                assert await ask(connection) == b"question"
                network.cut(reset=reset)
                assert await read_to_the_end(connection[0]) == (b"", end)


async def test_nobody_gets_its_port_while_it_refuses(echo):
    async with FaultyNetwork(echo.upstream) as network:
        network.refuse()
        await asyncio.sleep(0)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((network.host, network.port))
