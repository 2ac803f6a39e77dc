"""Write a plugin for ckrun in Python 3.9 or newer; the standard library is enough.

The protocol itself is on ../PROTOCOL.md; this module hides the socket and JSON. A plugin is a subclass of Plugin with one
method for each event that it wants:

    class Emulator(Plugin):
        version = "softemu 1.4"

        def init(self, event):
            return Result(bindings=[device("/dev/emu0", self.ckrun.options["device"])])

        def presuspend(self, event):
            if self.busy():
                raise Veto("a transfer is under way")

    sys.exit(Emulator().serve())

A method returns a Result, or None if there is nothing to say, and raises Veto, Unavailable, Mismatch or Lost with a sentence
(what, why, what to do). Everything here belongs to the one thread that is in serve().
"""
import base64
import collections
import contextlib
import dataclasses
import functools
import json
import math
import os
import select
import socket
import sys
import traceback
from typing import Any, BinaryIO, Dict, List, NamedTuple, Optional, Sequence, Union

LINE = 1048576  # bytes of a message, its newline included
CHUNK = 524288  # bytes of memory in one call
FDS = 16  # descriptors of one message
EVENTS = ("init", "presuspend", "precheckpoint", "committed", "resume", "check", "restart", "running", "exit", "recover")


class Failure(Exception):
    """What ckrun answers to a call, or a plugin to an event. The classes below say what it means."""

    code = -32603

    def __init__(self, message: str, code: Optional[int] = None):
        super().__init__(message)
        if code is not None:
            self.code = code


class Veto(Failure):
    """Not now: the one who asked for a checkpoint is shown the sentence."""

    code = 1


class Unavailable(Failure):
    """What is needed is not there or is taken: no free slot, no route."""

    code = 2


class Mismatch(Failure):
    """What is there is not what the image needs: another design, another version."""

    code = 3


class Lost(Failure):
    """The emulator has gone, and with it its state."""

    code = 4


class Denied(Failure):
    """ckrun: the capability was not granted."""

    code = 5


class WrongState(Failure):
    """ckrun: not allowed at this event."""

    code = 6


class Unknown(Failure):
    """ckrun: there is no such name, task or key."""

    code = 7


class Limit(Failure):
    """ckrun, or this module: too large, too many."""

    code = 8


FAILURES = {kind.code: kind for kind in (Veto, Unavailable, Mismatch, Lost, Denied, WrongState, Unknown, Limit)}


class Gone(Exception):
    """ckrun has closed the socket."""


class Broken(Exception):
    """ckrun has sent what the protocol does not allow, and nothing can be believed any more."""


class Task(NamedTuple):
    """A thread of the job; ids as the job sees them."""

    pid: int
    tid: int
    command: str


class Names(NamedTuple):
    """A name or a number as the job sees it, and what it stands for on this host at the moment."""

    virtual: Union[str, int, None]
    real: Union[str, int, None]


@dataclasses.dataclass
class Binding:
    """A virtual name and what is behind it: `real`, or a descriptor, which stays the plugin's own."""

    kind: str
    virtual: Union[str, int]
    real: Union[str, int, None] = None
    fd: Optional[int] = None
    space: Optional[str] = None


def device(virtual: str, real: Optional[str] = None, fd: Optional[int] = None) -> Binding:
    """A file, or a directory of files, that the job opens."""
    return Binding("device", virtual, real, fd)


def memory(virtual: str, real: Optional[str] = None, fd: Optional[int] = None) -> Binding:
    """A file that the job maps."""
    return Binding("memory", virtual, real, fd)


def connection(virtual: str, real: Optional[str] = None, fd: Optional[int] = None) -> Binding:
    """A socket, by "tcp:HOST:PORT", "unix:PATH" or "unix:@NAME"."""
    return Binding("socket", virtual, real, fd)


def handle(space: str, virtual: int, real: int) -> Binding:
    """A vendor's number inside ioctls."""
    return Binding("handle", virtual, real, space=space)


@dataclasses.dataclass
class Result:
    """The answer to an event; PROTOCOL.md says which event takes what."""

    bindings: Sequence[Binding] = ()
    env: Dict[str, str] = dataclasses.field(default_factory=dict)
    mounts: Sequence[Dict[str, Any]] = ()
    ioctls: Sequence[Dict[str, Any]] = ()
    requirements: Dict[str, Any] = dataclasses.field(default_factory=dict)

    def _members(self, fds: List[int]) -> Dict[str, Any]:
        """Itself as JSON; the descriptors that it names are added to `fds`."""
        bindings = []
        for binding in self.bindings:
            members = {name: value for name, value in dataclasses.asdict(binding).items() if value is not None}
            if binding.fd is not None:
                fds.append(binding.fd)
                members["fd"] = len(fds) - 1
            bindings.append(members)
        members = dict(dataclasses.asdict(self), bindings=bindings)
        return {name: value for name, value in members.items() if value}


@dataclasses.dataclass
class Job:
    """The job that the plugin serves; `generation` counts its restarts."""

    id: str
    generation: int
    host: str
    bundle: str


@dataclasses.dataclass
class Event:
    """What ckrun tells. What the protocol does not give at this event is empty."""

    name: str
    deadline: float  # seconds
    job: Job
    folder: str = ""  # precheckpoint, check, restart; see open()
    image: str = ""  # committed
    after: str = ""  # resume, running
    reason: str = ""  # exit
    requirements: Dict[str, Any] = dataclasses.field(default_factory=dict)
    bindings: List[Dict[str, Any]] = dataclasses.field(default_factory=list)
    params: Dict[str, Any] = dataclasses.field(default_factory=dict)  # all of it, for what a later protocol adds
    fds: List[int] = dataclasses.field(default_factory=list)  # closed after the event: dup() what is to stay

    def open(self, name: str, mode: str = "r", **options: Any) -> Any:
        """open() for a file in the event's folder, which may be closed to all but its descriptor."""
        if not self.fds:
            return open(os.path.join(self.folder, name), mode, **options)
        return open(name, mode, opener=lambda path, flags: os.open(path, flags, 0o600, dir_fd=self.fds[0]), **options)


def _typed(params: Dict[str, Any], name: str, kind: Any, otherwise: Any) -> Any:
    value = params.get(name, otherwise)
    return value if isinstance(value, kind) and not isinstance(value, bool) else otherwise


def _event(name: str, params: Dict[str, Any], fds: List[int]) -> Event:
    job = _typed(params, "job", dict, {})
    texts = {text: _typed(params, text, str, "") for text in ("folder", "image", "after", "reason")}
    whose = Job(_typed(job, "id", str, ""), _typed(job, "generation", int, 0), _typed(job, "host", str, ""),
                _typed(job, "bundle", str, ""))
    return Event(name, _typed(params, "deadline", (int, float), 0), whose, **texts, params=params, fds=fds,
                 requirements=_typed(params, "requirements", dict, {}), bindings=_typed(params, "bindings", list, []))


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number that is too large")
    return number


def _parse(line: bytes) -> Dict[str, Any]:
    """A message as strict as JSON is: no NaN, no half surrogate pairs."""
    try:
        message = json.loads(line.decode(), parse_constant=_refuse, parse_float=_float)
        if b"\\u" in line:
            json.dumps(message, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as e:
        raise Broken(f"a message is not JSON: {e}") from None
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
        raise Broken("a message that is not JSON-RPC 2.0")
    return message


class Ckrun:
    """The other side: what it has said about this plugin, and the calls. A call raises Failure, or its kinds, and Gone.

    `options` are those of the command line, `granted` the capabilities, `name` the plugin's own name in this job.
    """

    def __init__(self, fd: int):
        os.set_inheritable(fd, False)
        self.name = ""
        self.options: Dict[str, str] = {}
        self.granted: List[str] = []
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(True)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._bytes = bytearray()
        self._searched = 0
        self._fds: List[int] = []
        self._waiting: collections.deque = collections.deque()  # requests: [message, descriptors, cancelled]
        self._now: Optional[list] = None
        self._id = 0
        self._called = False
        self._answer: Optional[Dict[str, Any]] = None

    # --- messages

    def _receive(self, wait: bool) -> bool:
        if not wait and not self._poll.poll(0):
            return False
        try:
            # The kernel never joins what was sent after descriptors with what was sent with them, but may well join what
            # came before: each line takes those that it announces, in order.
            data, fds, flags, _ = socket.recv_fds(self._socket, 65536, FDS)
        except ConnectionResetError:
            data, fds, flags = b"", [], 0
        for fd in fds:
            os.set_inheritable(fd, False)
        self._fds += fds
        if flags & socket.MSG_CTRUNC or len(self._fds) > 4 * FDS:
            raise Broken("too many descriptors")
        if not data:
            raise Broken("the socket ends within a line") if self._bytes else Gone("ckrun has closed the socket")
        self._bytes += data
        return True

    def _line(self, wait: bool) -> Optional[bytes]:
        while True:
            end = self._bytes.find(b"\n", self._searched)
            if end >= LINE or end < 0 and len(self._bytes) >= LINE:
                raise Broken("a line is too long")
            if end >= 0:
                line = bytes(self._bytes[:end])
                del self._bytes[: end + 1]
                self._searched = 0
                return line
            self._searched = len(self._bytes)
            if not self._receive(wait):
                return None

    def _take(self, wait: bool) -> bool:
        """Reads a message and puts it where it belongs; False if there is none now."""
        line = self._line(wait)
        if line is None:
            return False
        message = _parse(line)
        count = message.get("fds", 0)
        if type(count) is not int or not (1 if "fds" in message else 0) <= count <= FDS or count > len(self._fds):
            raise Broken("descriptors were announced that did not come")
        fds, self._fds = self._fds[:count], self._fds[count:]
        if self._fds and not self._bytes:
            raise Broken("descriptors came that were not announced")
        method, id = message.get("method"), message.get("id")
        if isinstance(method, str) and "id" not in message:
            last = self._waiting[-1] if self._waiting else self._now
            params = message.get("params")
            if method == "cancel" and last and isinstance(params, dict) and params.get("event") == last[0]["method"]:
                last[2] = True
            _close(fds)
        elif isinstance(id, bool) or not isinstance(id, (str, int, float)):
            raise Broken("an id that is none")
        elif isinstance(method, str):
            # More than one waits only when an event was cancelled while a call was under way.
            if len(self._waiting) == 8:
                raise Broken("too many requests at once")
            self._waiting.append([message, fds, False])
        else:
            _close(fds)
            if ("result" in message) == ("error" in message):
                raise Broken("neither a request nor an answer")
            if not self._called or id != self._id:
                raise Broken("an answer to nothing")
            self._called, self._answer = False, message
        return True

    def _send(self, message: Dict[str, Any], fds: Sequence[int] = ()) -> None:
        try:
            message = dict({"jsonrpc": "2.0"}, **message)
            line = json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        except (TypeError, ValueError, RecursionError) as e:
            raise Failure(f"it cannot be written as JSON: {e}") from None
        if len(line) >= LINE:
            raise Limit("longer than a line may be")
        if len(fds) > FDS:
            raise Limit(f"more than {FDS} descriptors")
        line += b"\n"
        try:
            sent = socket.send_fds(self._socket, [line], fds) if fds else 0
            self._socket.sendall(line[sent:])
        except (BrokenPipeError, ConnectionResetError):
            raise Gone("ckrun has closed the socket") from None

    # --- calls

    def call(self, method: str, **params: Any) -> Dict[str, Any]:
        """Any call, for those that a later protocol adds. A parameter that is None is left out."""
        self._id += 1
        params = {name: value for name, value in params.items() if value is not None}
        self._send({"id": self._id, "method": method, "params": params})
        self._called, self._answer = True, None
        while self._answer is None:
            self._take(True)
        error = self._answer.get("error")
        if error is not None:
            error = error if isinstance(error, dict) else {}
            code = _typed(error, "code", int, Failure.code)
            raise FAILURES.get(code, Failure)(f"{method}: {error.get('message', 'ckrun did not say why')}", code)
        return _typed(self._answer, "result", dict, {})

    def cancelled(self) -> bool:
        """Whether ckrun has given up waiting for the event under way: there is no point in going on with it."""
        while self._take(False):
            pass
        return bool(self._now and self._now[2])

    def translate(self, kind: str, virtual: Union[str, int, None] = None, real: Union[str, int, None] = None,
                  space: Optional[str] = None) -> Names:
        """A name one way or the other. `kind` is that of a binding (a handle has a space), "pid" or "tid"."""
        names = self.call("translate", kind=kind, virtual=virtual, real=real, space=space)
        return Names(names.get("virtual"), names.get("real"))

    def translate_fd(self, pid: int, number: int) -> Names:
        """What descriptor `number` of the job's process `pid` is."""
        names = self.call("translate", kind="fd", pid=pid, number=number)
        return Names(names.get("virtual"), names.get("real"))

    def bind(self, space: str, virtual: int, real: int) -> None:
        """Binds a handle."""
        self.call("bind", kind="handle", space=space, virtual=virtual, real=real)

    def unbind(self, space: str, virtual: int) -> None:
        """Takes the binding of a handle back."""
        self.call("unbind", kind="handle", space=space, virtual=virtual)

    def put(self, key: str, value: Any) -> None:
        """Keeps a value in the plugin's own area, which is kept in the image; None removes the key."""
        self.call("put", key=key, value=value)

    def get(self, key: str, *otherwise: Any) -> Any:
        """The value of a key. Without one: `otherwise` if it is given, else Unknown is raised."""
        try:
            return self.call("get", key=key).get("value")
        except Unknown:
            if not otherwise:
                raise
            return otherwise[0]

    def tasks(self) -> List[Task]:
        """The job's threads."""
        return [Task(task["pid"], task["tid"], task["command"]) for task in self.call("tasks")["tasks"]]

    def read(self, pid: int, address: int, length: int) -> bytes:
        """Memory of a process of the job; any length."""
        parts = []
        for at in range(0, length, CHUNK):
            size = min(CHUNK, length - at)
            data = self.call("read", pid=pid, address=hex(address + at), length=size)["data"]
            parts.append(base64.b64decode(data, validate=True))
            if len(parts[-1]) != size:
                raise Failure("read: ckrun has sent another length")
        return b"".join(parts)

    def write(self, pid: int, address: int, data: bytes) -> None:
        """Changes memory of a process of the job; any length."""
        for at in range(0, len(data), CHUNK):
            part = base64.b64encode(data[at : at + CHUNK]).decode()
            self.call("write", pid=pid, address=hex(address + at), data=part)

    def registers(self, tid: int, **set: int) -> Dict[str, int]:
        """The registers of a thread by their names (rip, rax, ...), after changing those that are given."""
        values = {name: hex(value) for name, value in set.items()} or None
        registers = self.call("registers", tid=tid, set=values)["registers"]
        return {name: int(value, 16) for name, value in registers.items()}

    def signal(self, pid: int, number: int) -> None:
        """Sends a signal to a process of the job."""
        self.call("signal", pid=pid, signal=int(number))

    def barrier(self, name: str) -> None:
        """Returns when every plugin of the job that takes part in the event is here."""
        self.call("barrier", name=name)

    def log(self, level: str, message: str) -> None:
        """Says something to people: level "error", "warn", "info" or "debug"."""
        self._send({"method": "log", "params": {"level": level, "message": _sentence(message)}})


def _sentence(text: str) -> str:
    """What can be sent for certain."""
    return text[:1000].encode(errors="replace").decode()


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


class Plugin:
    """A plugin: ckrun sends only the events whose methods a subclass has."""

    version = ""  # of the plugin, for people
    deadlines: Dict[str, float] = {}  # seconds that an event may take instead of the default
    ckrun: Ckrun  # from serve() on

    def hello(self, event: Event) -> None:
        """The first event; self.ckrun knows options and granted capabilities."""

    def init(self, event: Event) -> Optional[Result]:
        """A new job: claim an emulator, open the link, bind its names."""

    def presuspend(self, event: Event) -> None:
        """The job runs: stop issuing and wait until nothing is on the wire, or raise Veto."""

    def precheckpoint(self, event: Event) -> Optional[Result]:
        """The job stands still: save the emulator's state in event.folder, say what a restart requires, let go."""

    def committed(self, event: Event) -> None:
        """The image event.image is complete, and the job stands still."""

    def resume(self, event: Event) -> Optional[Result]:
        """The job goes on on this host: take hold again if need be. event.after says whether the checkpoint failed."""

    def check(self, event: Event) -> None:
        """Could the image be restarted here? Nothing is to be claimed; raise Unavailable or Mismatch."""

    def restart(self, event: Event) -> Optional[Result]:
        """Claim an emulator here, load the state, attach, and bind every name again."""

    def running(self, event: Event) -> None:
        """The job is about to run: start clocks, arm faults. event.after says what it comes from."""

    def exit(self, event: Event) -> None:
        """The job is gone: release what is held. event.reason says why."""

    def recover(self, event: Event) -> Optional[Result]:
        """Take over from a predecessor that has failed, or ended with ckrun's supervisor; the job runs."""

    def _wanted(self) -> List[str]:
        return [name for name in EVENTS if getattr(type(self), name) is not getattr(Plugin, name)]

    def _greet(self, event: Event) -> Dict[str, Any]:
        protocol = _typed(event.params, "protocol", str, "none")
        if protocol.split(".")[0] != "1":
            raise Mismatch(f"the plugin speaks protocol 1.0, not {protocol}")
        plugin = _typed(event.params, "plugin", dict, {})
        self.ckrun.name = _typed(plugin, "name", str, "")
        self.ckrun.options = _typed(plugin, "options", dict, {})
        self.ckrun.granted = _typed(event.params, "granted", list, [])
        self.hello(event)
        greeting = {"protocol": "1.0", "version": self.version, "events": self._wanted()}
        return dict(greeting, deadlines=self.deadlines) if self.deadlines else greeting

    def _act(self, event: Event, greeted: bool, fds: List[int]) -> Dict[str, Any]:
        if (event.name == "hello") == greeted:
            raise Failure("hello came twice" if greeted else f"{event.name} came before hello", -32600)
        if not greeted:
            return self._greet(event)
        if event.name not in self._wanted():
            raise Failure(f"no event {event.name} is known here", -32601)
        result = getattr(self, event.name)(event)
        return result._members(fds) if result else {}

    def _answer(self, greeted: bool) -> None:
        """Answers the event under way."""
        message, received, _ = self.ckrun._now
        send = functools.partial(self._reply, message["id"])
        fds: List[int] = []
        try:
            event = _event(message["method"], _typed(message, "params", dict, {}), received)
            send(fds, result=self._act(event, greeted, fds))
        except (Gone, Broken):
            raise
        except Failure as e:
            # A code of ckrun's or of this module's would say something else there.
            code = e.code if e.code <= Lost.code else Failure.code
            send([], error={"code": code, "message": _sentence(str(e) or "the plugin did not say why")})
        except Exception as e:
            traceback.print_exc()
            send([], error={"code": Failure.code, "message": _sentence(f"{type(e).__name__}: {e}")})

    def _reply(self, id: Any, fds: List[int], **answer: Any) -> None:
        message = dict({"id": id}, **answer)
        if fds:
            message["fds"] = len(fds)
        self.ckrun._send(message, fds)

    def serve(self) -> int:
        """Answers events until the job is gone or ckrun is; the exit status. The socket is that of CKRUN_PLUGIN_SOCKET."""
        # The log is read while the plugin runs.
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
        try:
            self.ckrun = Ckrun(int(os.environ["CKRUN_PLUGIN_SOCKET"]))
        except (KeyError, ValueError, OSError):
            print("CKRUN_PLUGIN_SOCKET names no open socket: this program is started by ckrun", file=sys.stderr)
            return 1
        greeted = False
        try:
            while True:
                while not self.ckrun._waiting:
                    self.ckrun._take(True)
                self.ckrun._now = self.ckrun._waiting.popleft()
                self._answer(greeted)
                message, fds, _ = self.ckrun._now
                _close(fds)
                self.ckrun._now = None
                greeted = greeted or message["method"] == "hello"
                if message["method"] == "exit":
                    return 0
        except Gone:
            return 0
        except Broken as e:
            print(f"the socket of ckrun: {e}", file=sys.stderr)
            return 1
