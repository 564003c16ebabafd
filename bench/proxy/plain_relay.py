"""What one writes first: a relay of aiohttp's client and server, kept as a reference. python plain_relay.py PORT URL …

No keys, no choice but one engine after the other, no accounting.
"""

import asyncio
import itertools
import sys

import aiohttp
import uvloop
from aiohttp import web


async def serve(port: int, urls: list[str]) -> None:
    turn = itertools.cycle(urls)

    async def relay(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        url = next(turn) + request.path
        async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer:
            if answer.content_type != "text/event-stream":
                return web.Response(body=await answer.read(), content_type=answer.content_type)
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            return response

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        # With cancellation, or streams that nobody reads would stay.
        application = web.Application()
        application.router.add_post("/{path:.*}", relay)
        runner = web.AppRunner(application, access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=2_048).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), sys.argv[2:]))
