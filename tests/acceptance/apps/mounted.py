"""A FastAPI app with another one mounted in it, served below a root path."""

from fastapi import FastAPI, Request, WebSocket

app = FastAPI(title="Outer")
inner = FastAPI(title="Inner")


@app.get("/where")
async def where(request: Request):
    return [request.scope["root_path"], request.url.path, str(request.url_for("where"))]


@inner.get("/where/{name}")
async def inner_where(request: Request, name: str):
    return [request.scope["root_path"], request.url.path, name]


@inner.websocket("/ws")
async def ws(socket: WebSocket):
    await socket.accept()
    await socket.send_text(socket.scope["root_path"])
    await socket.close()


app.mount("/inner", inner)
