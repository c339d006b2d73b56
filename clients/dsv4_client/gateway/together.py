"""Several answers to one prompt, as one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

Item = TypeVar("Item")


async def together(sources: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[tuple[int, Item], None]:
    """Yield (index of the source, item) as they come.

    Rule: the first source runs alone until its first item: its prompt is then in the prefix cache, and the others share
          it. One that fails ends all of them. Closing this closes every source.
    """
    if len(sources) == 1:
        async with aclosing(sources[0]) as only:
            async for item in only:
                yield 0, item
        return
    queue: asyncio.Queue[tuple[int, Item] | Exception | None] = asyncio.Queue(1)
    tasks = [asyncio.create_task(_pull(sources[0], 0, queue))]
    try:
        num_open = len(sources)
        while num_open:
            found = await queue.get()
            if len(tasks) == 1:
                tasks += [asyncio.create_task(_pull(each, index, queue)) for index, each in enumerate(sources) if index]
            if isinstance(found, Exception):
                raise found
            if found is None:
                num_open -= 1
            else:
                yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pull(
    source: AsyncGenerator[Item, None], index: int, queue: asyncio.Queue[tuple[int, Item] | Exception | None]
) -> None:
    try:
        async with aclosing(source):
            async for item in source:
                await queue.put((index, item))
    except Exception as error:  # the end of the task: the reader raises it
        await queue.put(error)
        return
    await queue.put(None)
