"""A plain FastAPI app as people write it; it knows nothing of the runner."""

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Query, Request, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.middleware.base import BaseHTTPMiddleware

STATIC = Path(__file__).with_name("static")
done = []


@asynccontextmanager
async def lifespan(_):
    yield {"resource": "open"}


app = FastAPI(title="Plain", lifespan=lifespan)


class Stamp(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        answer = await call_next(request)
        answer.headers["X-Stamp"] = request.method
        return answer


app.add_middleware(GZipMiddleware, minimum_size=200)
app.add_middleware(Stamp)
app.add_middleware(CORSMiddleware, allow_origins=["https://a.example"], allow_methods=["*"])


@app.middleware("http")
async def count(request, call_next):
    answer = await call_next(request)
    answer.headers["X-Path"] = request.url.path
    return answer


class OddError(Exception):
    pass


@app.exception_handler(OddError)
async def handle_odd(request: Request, error: OddError):
    return JSONResponse({"odd": str(error)}, 418)


class Item(BaseModel):
    name: str
    price: float = 1.5


async def resource():
    done.append("opened")
    try:
        yield "resource"
    finally:
        done.append("closed")


def sync_resource():
    yield "sync"


router = APIRouter(prefix="/items", tags=["items"])


@router.get("/{item_id}")
async def read_item(item_id: int, q: Annotated[str | None, Query(max_length=5)] = None):
    return {"item_id": item_id, "q": q}


@router.post("", status_code=201)
async def create_item(item: Item) -> Item:
    return item


app.include_router(router)


@app.get("/depends")
async def depends(one: Annotated[str, Depends(resource)], two: Annotated[str, Depends(sync_resource)]):
    return [one, two]


@app.get("/state")
async def state(request: Request):
    return request.state.resource


@app.get("/sync")
def sync():
    return "in a thread"


@app.get("/background")
async def background(tasks: BackgroundTasks):
    tasks.add_task(done.append, "background")
    return "later"


@app.get("/done")
async def what_was_done():
    answer = list(done)
    done.clear()
    return answer


@app.get("/odd")
async def odd():
    raise OddError("as ever")


@app.get("/refused")
async def refused():
    raise HTTPException(403, "no", headers={"X-Why": "because"})


@app.get("/bug")
async def bug():
    raise RuntimeError("bug")


@app.get("/long")
async def long():
    return PlainTextResponse("x" * 1000)


@app.get("/stream")
async def stream():
    async def parts():
        for part in range(3):
            yield f"part {part}\n"
            await asyncio.sleep(0)

    return StreamingResponse(parts(), media_type="text/plain")


@app.get("/file")
async def file():
    return FileResponse(STATIC / "hello.txt")


@app.post("/echo")
async def echo(request: Request):
    return PlainTextResponse(await request.body())


@app.get("/who")
async def who(request: Request):
    return [request.client.host, request.url.scheme, request.headers.get("x-request-id")]


@app.websocket("/ws")
async def ws(socket: WebSocket, token: str = ""):
    if token == "wrong":  # noqa: S105 - a word of the test
        await socket.close(4403)
        return
    await socket.accept(subprotocol="chat", headers=[(b"x-socket", b"1")])
    await socket.send_text(await socket.receive_text())
    await socket.send_bytes(await socket.receive_bytes())
    await socket.close(4000, "enough")


try:
    import python_multipart  # noqa: F401
except ModuleNotFoundError:
    pass
else:
    from fastapi import File, Form, UploadFile

    @app.post("/form")
    async def form(name: Annotated[str, Form()], age: Annotated[int, Form()]):
        return [name, age]

    @app.post("/upload")
    async def upload(file: UploadFile, extra: Annotated[bytes, File()]):
        return [file.filename, file.content_type, (await file.read()).decode(), len(extra)]


app.mount("/static", StaticFiles(directory=STATIC))
