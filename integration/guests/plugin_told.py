#!/usr/bin/env python3
"""A plugin for tests: it writes down what it hears, and does what its options say.

log=FILE          a line for every event: NAME EVENT, with `after`, `reason` and the generation where there are some
device=PATH       what of the host it puts at `at` (/dev/emu0)
env=WORD          the value of the variable TOLD
text=WORD         what it saves, in its folder and by `put`; a restart finds the same or fails
design=WORD       what it requires at a restart, and what it has
how=WHAT,on=EVENT what it does at an event, see `misbehave`
when=WHAT         only if the event's `after` is this
seconds=N         the deadline that it asks for at that event
gate=DIR          for how=pause and how=ask-late: it writes to DIR/here, and reads from DIR/go; the latter then asks for
                  the tasks, and writes what it was told to DIR/said
poke=ADDRESS      what how=poke writes to, in process 1
"""

import array
import base64
import json
import os
import signal
import socket
import sys
import time

ck = socket.socket(fileno=3)
lines = ck.makefile("rb")
options, name, granted = {}, "?", []
calls = 0


def send(message, fds=()):
    line = (json.dumps({"jsonrpc": "2.0", **message}) + "\n").encode()
    while line:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        line = line[ck.sendmsg([line], rights):]
        fds = ()


def answer(id, result):
    send({"id": id, "result": result})


def refuse(id, code, why):
    send({"id": id, "error": {"code": code, "message": why}})


def call(method, **params):
    """Its result, or the error as a string."""
    global calls
    calls += 1
    send({"id": f"c{calls}", "method": method, "params": params})
    while True:
        message = json.loads(lines.readline())
        if message.get("id") == f"c{calls}" and "method" not in message:
            return message.get("result", message.get("error", {}).get("message"))


def note(*words):
    if "log" in options:
        with open(options["log"], "a") as log:
            log.write(" ".join([name, *map(str, words)]) + "\n")


def misbehave(how, id):
    """Whether there is nothing left to be done at this event."""
    if how == "veto":
        refuse(id, 1, "a bad moment")
    elif how == "hang":
        signal.pause()
    elif how == "late":
        time.sleep(float(options["seconds"]) + 0.2)
        return False
    elif how == "crash":
        os.abort()
    elif how == "flood":
        while True:
            os.write(1, b"flood\n" * 100)
            send({"method": "log", "params": {"level": "info", "message": "flood"}})
    elif how == "json":
        ck.sendall(b"{bad\n")
        signal.pause()
    elif how == "long":
        ck.sendall(b"x" * 1048577)
        signal.pause()
    elif how == "fd":
        send({"id": id, "result": {}, "fds": 2}, [0])
        signal.pause()
    elif how == "lie":
        answer(4711, {})
        signal.pause()
    elif how == "orphan":
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()
    elif how == "pause":
        gate = options["gate"]
        if not os.path.exists(f"{gate}/here"):
            return False
        with open(f"{gate}/here", "w") as here:
            here.write("here\n")
        with open(f"{gate}/go") as go:
            go.read()
        return False
    elif how == "ask-late":
        with open(f"{options['gate']}/here", "w") as here:
            here.write("here\n")
        with open(f"{options['gate']}/go") as go:
            go.read()
        with open(f"{options['gate']}/said", "w") as said:
            said.write(str(call("tasks")))
        return False
    elif how == "poke":
        note("tasks", len(call("tasks")["tasks"]))
        old = base64.b64decode(call("read", pid=1, address=options["poke"], length=8)["data"])
        note("found", int.from_bytes(old, "little"))
        data = base64.b64encode((int.from_bytes(old, "little") + 1000).to_bytes(8, "little")).decode()
        note("wrote", call("write", pid=1, address=options["poke"], data=data))
        registers = call("registers", tid=1)["registers"]
        note("registers", call("registers", tid=1, set={"r15": registers["r15"]})["registers"] == registers)
        return False
    elif how == "ask":
        for params in json.loads(base64.b64decode(options["ask"])):
            note("said", json.dumps(call(params.pop("method"), **params), sort_keys=True))
        return False
    else:
        return False
    return True


def saved(params):
    """What is wrong with what an image has of it."""
    need = params["requirements"].get("design")
    if need != options.get("design"):
        return f"the image needs design {need}"
    text = options.get("text")
    if text:
        with open(f"{params['folder']}/state/text") as state:
            found = state.read()
        kept = call("get", key="text")
        if found != text or kept != {"value": text}:
            return f"the state is {found} and {kept}"
    return None


def attached():
    result = {}
    if "device" in options:
        at = options.get("at", "/dev/emu0")
        result["bindings"] = [{"kind": "device", "virtual": at, "real": options["device"]}]
    if "env" in options:
        result["env"] = {"TOLD": options["env"]}
    return result


for line in lines:
    message = json.loads(line)
    if "id" not in message or "method" not in message:
        continue
    id, event, params = message["id"], message["method"], message["params"]
    if event == "hello":
        options, name = params["plugin"]["options"], params["plugin"]["name"]
    words = [params[word] for word in ("after", "reason") if word in params]
    if event in ("init", "restart"):
        words.append(params["job"]["generation"])
    if event == "recover":
        words.extend(binding["real"] for binding in params["bindings"])
    note(event, *words)
    now = options.get("on") == event and options.get("when") in (None, params.get("after"))
    if now and misbehave(options.get("how"), id):
        continue
    if event == "hello":
        result = {"protocol": "1.0", "version": "told 7"}
        if "seconds" in options:
            # One that hangs has nothing to say later either.
            hangs = options["how"] in ("hang", "flood")
            events = {options["on"], *(["resume", "running", "exit"] if hangs else [])}
            result["deadlines"] = {event: float(options["seconds"]) for event in events}
        answer(id, result)
    elif event == "init":
        answer(id, attached())
    elif event == "precheckpoint":
        if "text" in options:
            os.mkdir(f"{params['folder']}/state")
            with open(f"{params['folder']}/state/text", "w") as state:
                state.write(options["text"])
            call("put", key="text", value=options["text"])
        answer(id, {"requirements": {"design": options["design"]}} if "design" in options else {})
    elif event in ("check", "restart"):
        why = saved(params)
        if why:
            refuse(id, 3, why)
        else:
            answer(id, attached() if event == "restart" else {})
    else:
        answer(id, {})
note("end")
