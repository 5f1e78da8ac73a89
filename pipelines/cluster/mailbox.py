"""An actor that passes messages from rank 0 of a training to the process that started it."""

import asyncio
from concurrent.futures import Future
from typing import Any

import ray

from pipelines.training.history import Row

Message = list[Row] | str | Exception
"""Rows, a line of the log, or the reason why the training ended."""
POLL_SECONDS = 0.2
"""Interval between two checks whether the workers have ended."""


@ray.remote(num_cpus=0)
class Mailbox:
    """A queue whose sender waits for the reader's answer to each message."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[tuple[Message, asyncio.Future[bool]]] = asyncio.Queue()
        self._pending: asyncio.Future[bool] | None = None
        self._stopped = False

    async def post(self, message: Message) -> bool:
        """Send a message; returns the reader's answer: whether to go on."""
        if self._stopped:
            return False
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        await self._messages.put((message, answer))
        return await answer

    async def take(self) -> Message:
        """Wait for the next message."""
        message, self._pending = await self._messages.get()
        return message

    async def answer(self, go_on: bool) -> None:
        """Answer the message that was taken last."""
        if self._pending is not None and not self._pending.done():
            self._pending.set_result(go_on)

    async def stop(self) -> None:
        """Answer no, now and to every later message."""
        self._stopped = True
        await self.answer(False)
        while not self._messages.empty():
            self._messages.get_nowait()[1].set_result(False)


def next_message(mailbox: Any, fit: Future[Any]) -> Message | None:
    """The next message, or None when the workers have ended."""
    message = mailbox.take.remote()
    while True:
        ready, _ = ray.wait([message], timeout=POLL_SECONDS)
        if ready:
            return ray.get(message)
        if fit.done():
            return None
