"""Threads, queues, subprocesses and an event loop, all of which must go on counting. It says so in sys.argv[1]."""
import asyncio, hashlib, queue, random, subprocess, sys, threading, time

beats = {}


def bad(why):
    with open(sys.argv[1], "w") as f:
        f.write(f"BAD {why}\n")
    raise SystemExit(1)


def beat(name):
    beats[name] = beats.get(name, 0) + 1


def chain(name):
    """Hashes of hashes, recomputed from time to time."""
    value, values = b"", []
    while True:
        value = hashlib.sha256(value + name.encode()).digest()
        values.append(value)
        if len(values) == 2000:
            again = b""
            for kept in values:
                again = hashlib.sha256(again + name.encode()).digest()
                if again != kept:
                    bad(f"a hash of {name}")
            value, values = b"", []
            beat(name)


def produce(jobs):
    for n in range(1 << 60):
        jobs.put(n)


def consume(jobs):
    for n in range(1 << 60):
        if jobs.get() != n:
            bad("the queue lost something")
        if n % 1000 == 0:
            beat("queue")


def converse():
    """With a child that echoes."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as cat:
        for n in range(1 << 60):
            cat.stdin.write(f"{n}\n")
            cat.stdin.flush()
            if cat.stdout.readline() != f"{n}\n":
                bad("cat said something else")
            beat("cat")
            time.sleep(0.001)


def spawn():
    while True:
        n = random.randrange(200)
        if subprocess.run(["sh", "-c", f"exit {n}"]).returncode != n:
            bad("an exit status")
        beat("spawn")


def loop():
    async def ticks():
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.002)
            now = time.monotonic()
            if now < last:
                bad("the clock went back")
            last = now
            beat("loop")

    asyncio.run(ticks())


jobs = queue.Queue(100)
workers = [(chain, "a"), (chain, "b"), (produce, jobs), (consume, jobs), (converse,), (spawn,)]
if len(sys.argv) > 2:  # an event loop has a socket pair
    workers.append((loop,))
for work, *args in workers:
    threading.Thread(target=work, args=args, daemon=True).start()
seen = {}
for n in range(1, 1 << 60):
    while any(beats.get(name, 0) == seen.get(name, 0) for name in ("a", "b", "queue", "cat", "spawn")):
        time.sleep(0.001)
    seen = dict(beats)
    with open(sys.argv[1], "w") as f:
        f.write(f"OK {n}\n")
