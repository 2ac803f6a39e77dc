"""node: a server with threads and timers, and clients of it in another node and here."""
import http.client, os
from service import bad, connect, same, serve, well

NODE = ("node", "/work/node.js")
serve(*NODE, "serve")
connect(("127.0.0.1", 8090)).close()
read, write = os.pipe()
os.set_inheritable(write, True)
# What it says besides is in /work/output.
serve("sh", "-c", f'exec "$@" >&{write} {write}>&-', "sh", *NODE, "ask", pass_fds=[write])
os.close(write)
own = http.client.HTTPConnection("127.0.0.1", 8090)
own.connect()
own.auto_open = 0
last = 0
while True:
    for _ in range(4):
        if not os.read(read, 1):
            bad(f"the clients have ended: {open('/work/output').read()}")
    own.request("POST", "/ticks", b"")
    ticks = int(own.getresponse().read())
    if ticks < last:
        bad(f"{ticks} ticks, and there were {last}")
    last = ticks
    well()
