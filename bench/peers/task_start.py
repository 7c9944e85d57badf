"""A write and a task in one transaction, answered with 202 and where to look: by ours."""

from fastapi import FastAPI, Response

from freeloop import Freeloop

app = FastAPI()
kit = Freeloop(app, database=True)


@kit.task()
async def work(order: int) -> None:
    """Do nothing."""


@app.post("/orders", status_code=202)
async def order(response: Response) -> dict[str, str]:
    async with kit.database.transaction() as transaction:
        number = await transaction.fetch_value("insert into orders (what) values ('bread') returning id")
        task = await kit.tasks.start(work, number, in_=transaction)
    response.headers["location"] = f"/tasks/{task.id}"
    return {"task": str(task.id)}
