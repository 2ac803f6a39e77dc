"""What the drivers of services have in common: each starts a server, works with it, and says in /status how it goes."""
import itertools, os, signal, socket, subprocess, time

servers = []
count = 0


def bad(why):
    with open("/status", "w") as f:
        f.write(f"BAD {why}\n")
    os.kill(-1, signal.SIGKILL)  # all but this one, the first process
    raise SystemExit(1)


def well():
    """Everything has been verified once more, and the servers are there."""
    global count
    for server in servers:
        if server.poll() is not None:
            bad(f"{server.args[0]} has ended: {server.returncode}")
    count += 1
    with open("/status", "w") as f:
        f.write(f"OK {count}\n")


def same(what, is_, wanted):
    if is_ != wanted:
        bad(f"{what}: {is_!r} is not {wanted!r}")


def serve(*words, **how):
    """Starts a server that runs as long as the driver. What it says is in /work/output."""
    with open("/work/output", "a") as output:
        server = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **how)
    servers.append(server)
    return server


def connect(address):
    """A connection to a port, or to a path, as soon as somebody listens there."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    for _ in itertools.count():
        for server in servers:
            if server.poll() is not None:
                bad(f"{server.args[0]} has not started: {open('/work/output').read()}")
        client = socket.socket(family, socket.SOCK_STREAM)
        try:
            client.connect(address)
            return client
        except (ConnectionRefusedError, FileNotFoundError):
            client.close()
            time.sleep(0.01)


def beside(work, *words):
    """Does something in a process of its own, which never ends; the answer is called to see that it gets on."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(read)
        servers.clear()  # they are the driver's
        try:
            for _ in work(*words):
                os.write(write, b".")
        except BaseException as e:
            bad(f"{work.__name__} {words}: {e!r}")
        bad(f"{work.__name__} has ended")
    os.close(write)

    def get_on(steps):
        while steps > 0:
            steps -= len(os.read(read, steps))

    return get_on
