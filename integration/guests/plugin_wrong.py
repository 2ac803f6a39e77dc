#!/usr/bin/env python3
"""A plugin that breaks one rule: `how`, once, at the event `at`."""

import array
import json
import os
import signal
import socket
import sys
import time

ckrun = socket.socket(fileno=int(os.environ["CKRUN_PLUGIN_SOCKET"]))
lines = ckrun.makefile("rb")
options = {}
done = False


def send(message, fds=()):
    line = (json.dumps(dict(jsonrpc="2.0", **message)) + "\n").encode()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sent = ckrun.sendmsg([line], rights)
    # A call even without a byte would fail when the answer has made ckrun close the socket.
    if line[sent:]:
        ckrun.sendall(line[sent:])


def state(params):
    return os.path.join(params["folder"], "state")


def right(method, params):
    device = {"kind": "device", "virtual": "/dev/emu0", "real": "/dev/null"}
    if method == "hello":
        # Nobody is to wait long for a plugin that hangs.
        deadlines = {}
        if options.get("how") in ("hang", "flood"):
            deadlines = {"exit": 0.3, options.get("at"): 0.2}
        elif options.get("how") in ("stay", "deaf"):
            deadlines = {"exit": 2}
        return {"protocol": "1.0", "version": "wrong", "deadlines": deadlines}
    if method in ("init", "restart"):
        return {"bindings": [device]}
    if method == "precheckpoint":
        with open(state(params), "w") as file:
            file.write("whole")
    if method == "check" and open(state(params)).read() != "whole":
        return None
    return {}


def wrong(how, id, method, params):
    """True if that was the answer."""
    if how == "hang":
        time.sleep(1000)
    elif how == "crash":
        os._exit(3)
    elif how == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif how == "close":
        ckrun.shutdown(socket.SHUT_RDWR)
        time.sleep(1000)
    elif how == "flood":
        while True:
            send({"method": "log", "params": {"level": "debug", "message": "x" * 1000}})
    elif how == "lie":
        send({"id": 4711, "result": {}})
    elif how == "junk":
        ckrun.sendall(b"is this JSON?\n")
    elif how == "list":
        send({"id": id, "result": []})
    elif how == "long":
        ckrun.sendall(b"x" * (2 << 20))
    elif how == "unannounced":
        send({"id": id, "result": {}}, [0])
    elif how == "miscounted":
        send({"id": id, "result": {}, "fds": 2}, [0])
    elif how == "no-such-fd":
        send({"id": id, "result": {"bindings": [{"kind": "device", "virtual": "/dev/emu0", "fd": 3}]}})
    elif how == "nothing-there":
        real = "/dev/no-such-emulator"
        send({"id": id, "result": {"bindings": [{"kind": "device", "virtual": "/dev/emu0", "real": real}]}})
    elif how == "unconnected":
        link = socket.socket()
        binding = {"kind": "socket", "virtual": "tcp:emu:4000", "fd": 0}
        send({"id": id, "fds": 1, "result": {"bindings": [binding]}}, [link.fileno()])
    elif how == "handle":
        claim = {"device": "/dev/emu0", "command": "0x4502", "handles": [{"space": "s", "at": "result", "direction": "in"}]}
        send({"id": id, "result": {**right(method, params), "ioctls": [claim]}})
    elif how == "relative":
        send({"id": id, "result": {"bindings": [{"kind": "device", "virtual": "emu0", "real": "/dev/null"}]}})
    elif how == "forget":
        send({"id": id, "result": {}})
    elif how == "twice":
        send({"id": id, "result": right(method, params)})
        send({"id": id, "result": right(method, params)})
    elif how == "veto":
        send({"id": id, "error": {"code": 1, "message": "a transfer is under way"}})
    elif how == "stay":
        send({"id": id, "result": {}})
        time.sleep(1000)
    elif how == "link":
        os.symlink("/etc/passwd", state(params))
        send({"id": id, "result": {}})
    elif how == "future":
        send({"id": id, "result": {"protocol": "2.0"}})
    elif how == "agree":
        send({"id": id, "result": {}})
    elif how == "strict":
        if not any("ckrun-check" in name for name in params):
            return False
        send({"id": id, "error": {"code": -32602, "message": "unknown member"}})
    else:
        return False
    return True


for line in lines:
    message = json.loads(line)
    if "method" not in message or "id" not in message:
        continue
    id, method, params = message["id"], message["method"], message["params"]
    if method == "hello":
        options = params["plugin"]["options"]
    if not done and options.get("at") == method:
        if wrong(options.get("how"), id, method, params):
            done = True
            continue
    known = "hello init presuspend precheckpoint committed resume check restart running exit".split()
    result = right(method, params) if method in known else None
    if result is not None:
        send({"id": id, "result": result})
    elif method in known:
        send({"id": id, "error": {"code": 3, "message": "the state is not whole"}})
    else:
        send({"id": id, "error": {"code": -32601, "message": "no such event"}})
    if method == "exit":
        sys.exit(0)
if options.get("how") == "deaf":
    time.sleep(1000)
