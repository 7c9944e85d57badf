"""An app under a detector of what blocks the loop, each set up as its documentation says, with 100 ms.

``BENCH_APP`` names the app, ``BENCH_DETECTOR`` the detector; what one writes into files of its own goes to
``BENCH_REPORTS``.
"""

import asyncio
import importlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI

MILLISECONDS = 100
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def watch_with_aiocop() -> Lifespan:
    import aiocop  # type: ignore[import-untyped]  # noqa: PLC0415 - loaded by its own peer only

    def report(event: aiocop.SlowTaskEvent) -> None:
        if event.exceeded_threshold:
            traces = [each["trace"] for each in (*event.blocking_events, *event.cpu_stack_samples)]
            print("aiocop: slow task,", event.elapsed_ms, "ms", *traces, flush=True)

    aiocop.patch_audit_functions()
    aiocop.start_blocking_io_detection()
    aiocop.detect_slow_tasks(threshold_ms=MILLISECONDS, on_slow_task=report)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        aiocop.activate()
        yield
        aiocop.deactivate()

    return lifespan


@asynccontextmanager
async def watch_with_loopsentry(_: FastAPI) -> AsyncIterator[None]:
    from loopsentry import LoopSentry  # type: ignore[import-untyped]  # noqa: PLC0415 - as above

    sentry = LoopSentry(base_dir=os.environ["BENCH_REPORTS"], threshold=MILLISECONDS / 1000)
    sentry.start()
    yield
    sentry.stop()


@asynccontextmanager
async def watch_with_asynclens(_: FastAPI) -> AsyncIterator[None]:
    from asynclens import AsyncWatchdog  # type: ignore[import-untyped]  # noqa: PLC0415 - as above

    async with AsyncWatchdog(threshold_ms=MILLISECONDS, logger=logging.getLogger("asynclens")):
        yield


@asynccontextmanager
async def debug(_: FastAPI) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = MILLISECONDS / 1000
    yield


@asynccontextmanager
async def do_nothing(_: FastAPI) -> AsyncIterator[None]:
    yield


def watch_with_loopguard(app: FastAPI) -> None:
    from fastapi_loopguard import LoopGuardConfig, LoopGuardMiddleware  # noqa: PLC0415 - as above

    config = LoopGuardConfig(fallback_threshold_ms=MILLISECONDS, enforcement_mode="log")
    app.add_middleware(LoopGuardMiddleware, config=config)


def watch(app: FastAPI, detector: str) -> None:
    lifespans: dict[str, Callable[[], Lifespan]] = {
        "aiocop": watch_with_aiocop,
        "loopsentry": lambda: watch_with_loopsentry,
        "asynclens": lambda: watch_with_asynclens,
        "debug": lambda: debug,
        "loopguard": lambda: do_nothing,
        "": lambda: do_nothing,
    }
    app.router.lifespan_context = lifespans[detector]()
    if detector == "loopguard":
        watch_with_loopguard(app)


logging.basicConfig(level=logging.WARNING)
module, _, attribute = os.environ["BENCH_APP"].partition(":")
app: FastAPI = getattr(importlib.import_module(module), attribute)
watch(app, os.environ["BENCH_DETECTOR"])
