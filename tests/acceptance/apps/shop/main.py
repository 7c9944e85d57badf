"""The app of the package."""

from fastapi import FastAPI

from .words import WORD


class Holder:
    app = FastAPI()


app = Holder.app


def create():
    return app


@app.get("/")
async def root():
    return WORD
