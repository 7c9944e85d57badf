"""The tutorial's counter-example: ``def`` and ``time.sleep``, run by FastAPI in its 40 threads."""

import os
import time

from fastapi import FastAPI

SECONDS = float(os.environ.get("BENCH_SECONDS", "2"))
app = FastAPI()


@app.get("/async-task")
def async_task() -> dict[str, str]:
    time.sleep(SECONDS)
    return {"message": "Task Complete"}
