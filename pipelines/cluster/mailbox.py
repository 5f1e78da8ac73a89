"""Ray Train: the training loop in several processes, seen from outside as one iterator."""

import asyncio
from concurrent.futures import Future
from typing import Any

import ray.train

from pipelines.training.history import Row
from pipelines.training.trainer import DivergedError

Post = list[Row] | str | DivergedError
"""What rank 0 has to tell: rows, something a person should know, or that it diverged."""
POLL_SECONDS = 0.2


@ray.remote(num_cpus=0)
class Mailbox:
    """Between rank 0, which posts and waits for an answer, and whoever iterates."""

    def __init__(self) -> None:
        self._posts: asyncio.Queue[tuple[Post, asyncio.Future[bool]]] = asyncio.Queue()
        self._pending: asyncio.Future[bool] | None = None
        self._stopped = False

    async def post(self, post: Post) -> bool:
        """Hand something over; returns the reader's answer: whether to go on."""
        if self._stopped:
            return False
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        await self._posts.put((post, answer))
        return await answer

    async def take(self) -> Post:
        """Wait for the next post."""
        post, self._pending = await self._posts.get()
        return post

    async def answer(self, go_on: bool) -> None:
        """Release whoever posted what was taken last."""
        if self._pending is not None and not self._pending.done():
            self._pending.set_result(go_on)

    async def stop(self) -> None:
        """Answer no, now and to every later post."""
        self._stopped = True
        await self.answer(False)
        while not self._posts.empty():
            self._posts.get_nowait()[1].set_result(False)


def next_post(mailbox: Any, fit: Future[Any]) -> Post | None:
    """The next post, or None when the workers have ended."""
    post = mailbox.take.remote()
    while True:
        ready, _ = ray.wait([post], timeout=POLL_SECONDS)
        if ready:
            return ray.get(post)
        if fit.done():
            return None
