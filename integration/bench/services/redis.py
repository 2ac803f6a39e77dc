"""redis-server with so many MiB that no compression helps with, and four clients that verify them and change them.

The server's socket is a unix socket: criu carries TCP connections only with an option, and with a packet filter."""
import random, sys
from service import beside, connect, same, serve, well

SOCKET, PIECE, CLIENTS = "/work/redis.sock", 64 << 10, 4
count = int(sys.argv[1]) * (1 << 20) // PIECE
serve("redis-server", "--port", "0", "--unixsocket", SOCKET, "--dir", "/work", "--save", "", "--daemonize", "no")


class Client:
    def __init__(self):
        self.file = connect(SOCKET).makefile("rwb")

    def __call__(self, *words):
        self.file.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))
        self.file.flush()
        line = self.file.readline()
        return self.file.read(int(line[1:]) + 2)[:-2] if line[:1] == b"$" else line


def value(key, turn):
    return random.Random(key * 1_000_000 + turn).randbytes(PIECE)


def work(own):
    redis, turns = Client(), dict.fromkeys(range(own, count, CLIENTS), 0)
    for key in turns:
        same("an answer", redis(b"SET", b"%d" % key, value(key, 0)), b"+OK\r\n")
    while True:
        key = random.choice(list(turns))
        same(f"the value of {key}", redis(b"GET", b"%d" % key) == value(key, turns[key]), True)
        turns[key] += 1
        redis(b"SET", b"%d" % key, value(key, turns[key]))
        yield


clients = [beside(work, own) for own in range(CLIENTS)]
while True:
    for get_on in clients:
        get_on(1)
    well()
