"""Start the keeper and wait until it says that PostgreSQL is ready."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from freeloop.database.embedded.binaries import find_binaries, make_reachable, read_major
from freeloop.database.embedded.locks import FileLock, open_file
from freeloop.database.embedded.place import Place, prepare_folder, prepare_socket_folder
from freeloop.errors import EmbeddedServerError

_SCRIPT: Final = Path(__file__).with_name("keeper.py")
_LARGEST_LOG: Final = 2**20
# Nothing else of the environment: PG* variables would change what PostgreSQL does, and secrets do not
# belong into a process that outlives us.
_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")
_ANSWER_LIMIT: Final = 65536


def launch_keeper(place: Place, lock: FileLock, wait: Callable[[], float]) -> bool:
    """Start a keeper, hand it the lock, and wait for its answer. Blocks.

    Args:
        place: where the server lives.
        lock: the keeper's lock, held; the keeper inherits the open file, so it is never free in between.
        wait: gives the seconds until it wants to be asked again; raises where the wait is over.

    Returns:
        True where the server is ready, False where the keeper was killed before it could answer.

    Raises:
        EmbeddedServerError: It could not start; with the end of the log.
    """
    binaries = find_binaries()
    major = read_major(binaries)
    account = prepare_folder(place, major)
    binaries = make_reachable(binaries, account, place.folder)
    prepare_socket_folder(place.socket_folder, account)
    log, position = _open_log(place)
    try:
        os.ftruncate(lock.descriptor, 0)  # the state of an earlier keeper is not to be believed any more
        keeper = subprocess.Popen(  # noqa: S603 - our own script
            [
                *(sys.executable, "-I", "-S", "-W", "ignore", str(_SCRIPT)),
                *(str(place.folder), str(binaries), str(place.socket_folder), str(major)),
                *(str(account.uid), str(account.gid), str(lock.descriptor)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd="/",
            env={"LC_ALL": "C"} | {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            pass_fds=[lock.descriptor],
            start_new_session=True,
        )
    except OSError as error:
        raise EmbeddedServerError(
            f"the keeper could not be started with {sys.executable!r}: {error}"
        ) from error
    finally:
        os.close(log)
    # Closing here ends no wait of the keeper: its answer is one short line that it may fail to write.
    with keeper:
        answer = _read_answer(keeper, wait)
    if answer.startswith("failed: "):
        reason = answer.removeprefix("failed: ")
        raise EmbeddedServerError(
            f"the embedded PostgreSQL in {place.folder} did not start: {reason}. {place.tail(position)}"
        )
    return answer == "ready"


def _read_answer(keeper: subprocess.Popen[bytes], wait: Callable[[], float]) -> str:
    # The process that we started forks the keeper proper and ends at once, so leaving the `with` block
    # does not wait for the keeper.
    assert keeper.stdout is not None  # noqa: S101 - for the type checker: it is a pipe
    answer = b""
    while not answer.endswith(b"\n"):
        if not select.select([keeper.stdout], [], [], wait())[0]:
            continue
        part = os.read(keeper.stdout.fileno(), _ANSWER_LIMIT)
        if not part:
            break
        answer += part
    return answer.decode(errors="replace").strip()


def _open_log(place: Place) -> tuple[int, int]:
    log = open_file(place.log, os.O_WRONLY | os.O_APPEND)
    if os.fstat(log).st_size > _LARGEST_LOG:
        os.close(log)
        place.log.replace(place.log.with_suffix(".log.1"))
        log = open_file(place.log, os.O_WRONLY | os.O_APPEND)
    return log, os.fstat(log).st_size
