"""A Starlette app."""

from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser, requires
from starlette.background import BackgroundTask
from starlette.endpoints import HTTPEndpoint, WebSocketEndpoint
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse
from starlette.routing import Mount, Route, WebSocketRoute

done = []


class Basic(AuthenticationBackend):
    async def authenticate(self, conn):
        if "authorization" in conn.headers:
            return AuthCredentials(["known"]), SimpleUser(conn.headers["authorization"])
        return None


class Home(HTTPEndpoint):
    async def get(self, request):
        return PlainTextResponse(f"home {request.state.greeting}")

    async def post(self, request):
        return JSONResponse(await request.json())


class Echo(WebSocketEndpoint):
    encoding = "text"

    async def on_receive(self, websocket, data):
        await websocket.send_text(data)
        await websocket.close()


@requires("known")
async def known(request):
    return PlainTextResponse(request.user.display_name)


def sync(request):
    return PlainTextResponse("sync " + request.path_params["name"])


async def later(request):
    return PlainTextResponse("later", background=BackgroundTask(done.append, "ran"))


async def what_was_done(request):
    return JSONResponse(done)


async def fail(request):
    raise RuntimeError("bug")


@asynccontextmanager
async def lifespan(app):
    yield {"greeting": "hello"}


app = Starlette(
    routes=[
        Route("/", Home),
        Route("/known", known),
        Route("/sync/{name}", sync),
        Route("/later", later),
        Route("/done", what_was_done),
        Route("/fail", fail),
        Route("/away", RedirectResponse("/sync/x")),
        Mount("/deep", routes=[Route("/{number:int}", lambda request: PlainTextResponse("7"))]),
        WebSocketRoute("/ws", Echo),
    ],
    middleware=[Middleware(AuthenticationMiddleware, backend=Basic())],
    lifespan=lifespan,
)
