"""A door that reads what a client sends, and can lose the reply to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sync.commands.embedded import HOST, READ_BYTES, Door


class Tap(Door):
    """Each piece that a client sends is shown to `hear`; if that says so, the reply is shown to `lose` and cut off."""

    def __init__(
        self, upstream_port: int, hear: Callable[[bytes], bool], lose: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(upstream_port)
        self._hear = hear
        self._lose = lose

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(HOST, self._upstream_port)
        heard = asyncio.Event()
        try:
            await asyncio.gather(self._up(reader, far_writer, heard), self._down(far_reader, writer, heard))
        finally:
            far_writer.close()

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: asyncio.Event) -> None:
        while data := await reader.read(READ_BYTES):
            if self._hear(data):
                heard.set()
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: asyncio.Event) -> None:
        while data := await reader.read(READ_BYTES):
            if heard.is_set():
                self._lose()
                raise ConnectionResetError
            writer.write(data)
            await writer.drain()
        writer.write_eof()
