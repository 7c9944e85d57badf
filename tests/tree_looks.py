"""Programs whose tasks wait, and a look at them that is asked by their names."""

import asyncio
from contextlib import asynccontextmanager

from freeloop.testing import eventually
from freeloop.tree import Tree


class Look:
    """A snapshot that is asked by the tasks' names."""

    def __init__(self, snapshot):
        self.snapshot = snapshot
        self.names = {task.id: task.name for task in snapshot.tasks}

    def __getitem__(self, name):
        (found,) = [task for task in self.snapshot.tasks if task.name == name]
        return found

    def on(self, name):
        """Return the names of the tasks that end a task's wait."""
        return {self.names[number] for number in self[name].wait.on}

    def awaited_by(self, name):
        return {self.names[number] for number in self[name].awaited_by}

    def edges(self):
        return {
            (task.name, self.names[on]) for task in self.snapshot.tasks if task.wait for on in task.wait.on
        }

    @property
    def lints(self):
        return {(finding.lint, self.names[finding.task]) for finding in self.snapshot.findings}


async def look(tree=None):
    return Look(await asyncio.to_thread((tree or Tree()).look))


@asynccontextmanager
async def running(**coroutines):
    """Run each as a task of its name, until all of them wait; cancel them behind the block."""
    tasks = [asyncio.create_task(coroutine, name=name) for name, coroutine in coroutines.items()]
    try:
        await settled()
        yield tasks
    finally:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            if task.get_name() in coroutines or "." in task.get_name():
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def settled():
    """Wait until no other task has anything to do at once."""

    def all_wait():
        others = asyncio.all_tasks() - {asyncio.current_task()}
        return all(task._fut_waiter is not None and not task._fut_waiter.done() for task in others)

    await eventually(all_wait)


def child(name, seconds=60.0):
    return asyncio.create_task(asyncio.sleep(seconds), name=name)
