"""redis-server, with clients that count, and clients that hand things on in order, by TCP and by a unix socket."""
from service import bad, beside, connect, same, serve, well

serve("redis-server", "--port", "6379", "--bind", "127.0.0.1", "--unixsocket", "/work/redis.sock", "--dir", "/work",
      "--save", "", "--appendonly", "yes", "--daemonize", "no")
ADDRESSES = {"tcp": ("127.0.0.1", 6379), "unix": "/work/redis.sock"}


class Client:
    def __init__(self, way):
        self.file = connect(ADDRESSES[way]).makefile("rwb")

    def send(self, *words):
        words = [str(word).encode() for word in words]
        self.file.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))

    def answer(self):
        self.file.flush()
        line = self.file.readline()
        kind, rest = line[:1], line[1:-2]
        match kind:
            case b":":
                return int(rest)
            case b"+":
                return rest.decode()
            case b"$" if int(rest) < 0:
                return None
            case b"$":
                return self.file.read(int(rest) + 2)[:-2].decode()
            case b"*":
                return [self.answer() for _ in range(int(rest))]
        bad(f"redis said {line!r}")

    def __call__(self, *words):
        self.send(*words)
        return self.answer()


def count(way):
    redis, n = Client(way), 0
    while True:
        # A hundred on the way at once.
        for _ in range(100):
            redis.send("INCR", f"counter-{way}")
        for _ in range(100):
            n += 1
            same("a counter", redis.answer(), n)
        yield


def hand_out(way):
    redis = Client(way)
    for n in range(1 << 60):
        if redis("RPUSH", f"list-{way}", f"{n} " + "x" * (n % 5000)) > 1000:
            redis("BLPOP", f"enough-{way}", 0)
        yield


def take(way):
    redis = Client(way)
    for n in range(1 << 60):
        same("what was handed on", redis("BLPOP", f"list-{way}", 0)[1], f"{n} " + "x" * (n % 5000))
        if n % 500 == 0:
            redis("RPUSH", f"enough-{way}", 1)
        yield


for address in ADDRESSES.values():
    connect(address).close()
others = [beside(work, way) for way in ADDRESSES for work in (count, take)]
for way in ADDRESSES:
    beside(hand_out, way)
redis, last = Client("tcp"), 0
while True:
    for get_on in others:
        get_on(20)
    # They may have been ahead by as many steps as were asked for.
    while (now := int(redis("GET", "counter-unix"))) == last:
        pass
    if now < last:
        bad(f"a counter is {now} and was {last}")
    last = now
    well()
