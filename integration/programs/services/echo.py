"""An asyncio server that echoes, and asyncio clients of it, by TCP over IPv4 and IPv6 and by a unix socket."""
import asyncio, random, sys
from service import bad, connect, same, serve, well

PATH, PORT = "/work/echo.sock", 7000


async def server():
    async def echo(reader, writer):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    four = await asyncio.start_server(echo, "127.0.0.1", PORT)
    six = await asyncio.start_server(echo, "::1", PORT)
    unix = await asyncio.start_unix_server(echo, PATH)
    await asyncio.gather(four.serve_forever(), six.serve_forever(), unix.serve_forever())


async def converse(open_connection, rounds):
    """A long-lived connection: what is sent comes back, in order and whole; much of it is on the way."""
    reader, writer = await open_connection()
    while True:
        messages = [random.randbytes(random.choice((1, 100, 10_000, 300_000))) for _ in range(4)]

        async def send():
            for message in messages:
                writer.write(message)
                await writer.drain()

        async def receive():
            for message in messages:
                same("an echo", await reader.readexactly(len(message)) == message, True)

        await asyncio.gather(send(), receive())
        await rounds.put(None)


async def come_and_go(open_connection, rounds):
    while True:
        reader, writer = await open_connection()
        writer.write(b"hello\n")
        same("a greeting", await reader.readline(), b"hello\n")
        writer.close()
        await writer.wait_closed()
        await rounds.put(None)


async def clients():
    ways = [
        lambda: asyncio.open_connection("127.0.0.1", PORT),
        lambda: asyncio.open_connection("::1", PORT),
        lambda: asyncio.open_unix_connection(PATH),
    ]
    queues, tasks = [], []
    for way in ways:
        for work in (converse, converse, come_and_go):
            queues.append(asyncio.Queue(1))
            tasks.append(asyncio.create_task(work(way, queues[-1])))
    while True:
        for rounds in queues:
            get = asyncio.create_task(rounds.get())
            await asyncio.wait([get, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    bad(f"a client has ended: {task.exception()!r}")
        well()


if len(sys.argv) > 1:
    asyncio.run(server())
serve("python3", "/work/echo.py", "server")
for address in (("127.0.0.1", PORT), PATH):
    connect(address).close()
asyncio.run(clients())
