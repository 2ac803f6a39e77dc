"""The job API of ckrun: what a job can ask the container runtime under which it runs. See README.md.

    import ckrun
    job = ckrun.open()                      # None: not under ckrun
    if job and job.checkpoint("booted", leave_running=True):
        print("restarted, generation", job.generation)
"""

import os
import select
import socket

LINE = 4096


class Error(Exception):
    """What ckrun has refused, or that it is gone."""


def open():
    """Connects. None: the job is not under ckrun, or has not been given the API."""
    path = os.environ.get("CKRUN_JOB_SOCKET")
    if not path:
        return None
    try:
        return Job(path)
    except (OSError, Error):
        return None


class Job:
    """A connection. It belongs to one thread; each may have its own."""

    def __init__(self, path):
        self._path = path
        self._socket = None
        self._before = self._after = None
        self._wants_calls = False
        self._forbids = None
        #: How often the job has been restarted.
        self.generation = 0
        #: The container's id.
        self.id = ""
        self._join()

    def close(self):
        if self._socket:
            self._socket.close()
            self._socket = None

    def fileno(self):
        """To be polled for reading; then call attend(0)."""
        return self._socket.fileno() if self._socket else -1

    def checkpoint(self, name, leave_running=False):
        """Asks for a checkpoint, and returns on both sides of it: False in the job that goes on, True in each one that is
        restarted from the image. Raises Error if there is no image."""
        self._ask(f"checkpoint {name} leave-running" if leave_running else f"checkpoint {name}")
        while True:
            line = self._hear()
            if line is None:
                if self._rejoin():
                    return True
                raise Error("ckrun was killed: perhaps there is an image")
            word, _, rest = line.partition(" ")
            if word == "done":
                return False
            if word == "failed":
                raise Error(rest)
            self._heed(line)

    def forbid(self, why):
        """No checkpoint from now on; whoever asks for one is told why."""
        self._ask(f"forbid {why}")
        self._forbids = why

    def allow(self):
        """Takes forbid() back."""
        self._forbids = None
        self._ask("allow")

    def callbacks(self, before=None, after=None):
        """before() is called when a checkpoint is about to be taken; a text that it returns is the reason why not.
        after(restarted) is called when the job goes on. Both are called by attend() and checkpoint() only."""
        self._before, self._after = before, after
        self._ask("callbacks")
        self._wants_calls = True

    def attend(self, seconds=None):
        """Waits (None: for ever) and does what is to be done. Whether there was something."""
        line = self._hear(seconds)
        if line == "":
            return False
        if line is None:
            self._rejoin()
        else:
            self._heed(line)
        return True

    def _join(self):
        self.close()
        self._bytes = b""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.connect(self._path)
        except OSError:
            made.close()
            raise
        self._socket = made
        words = (self._hear() or "").split(" ")
        said = dict(word.split("=", 1) for word in words if "=" in word)
        if words[0] != "hello" or said.get("protocol") != "1":
            self.close()
            raise Error("this ckrun speaks another protocol")
        self.generation, self.id = int(said["generation"]), said.get("id", "")

    def _rejoin(self):
        """The connection has ended: the job was restarted, or ckrun's process was, or it is gone."""
        before = self.generation
        try:
            self._join()
        except OSError as error:
            raise Error(f"ckrun is gone: {error}") from error
        if self._wants_calls:
            self._request("callbacks")
        if self._forbids is not None:
            self._request(f"forbid {self._forbids}")
        restarted = self.generation != before
        if self._wants_calls and self._after:
            self._after(restarted)
        return restarted

    def _heed(self, line):
        word = line.partition(" ")[0]
        if word == "before":
            why = self._before() if self._before else None
            self._say(f"veto {why}" if why else "ready")
        elif word == "after" and self._after:
            self._after(False)

    def _ask(self, line):
        if not self._socket:
            raise Error("ckrun is gone")
        poll = select.poll()
        poll.register(self._socket, 0)
        if any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0)):
            self._rejoin()
        self._request(line)

    def _request(self, line):
        self._say(line)
        while True:
            answer = self._hear()
            if answer is None:
                raise Error("the connection to ckrun has ended")
            word, _, rest = answer.partition(" ")
            if word == "ok":
                return
            if word == "error":
                raise Error(rest)
            self._heed(answer)

    def _say(self, line):
        data = line.replace("\n", " ").encode() + b"\n"
        if len(data) > LINE:
            raise Error("the message is too long")
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise Error(f"ckrun: {error}") from error

    def _hear(self, seconds=None):
        """The next line; "" if none came in time, None at the end."""
        while b"\n" not in self._bytes:
            if len(self._bytes) > LINE:
                raise Error("ckrun sent a line that is too long")
            if not select.select([self._socket], [], [], seconds)[0]:
                return ""
            try:
                got = self._socket.recv(LINE)
            except ConnectionResetError:
                got = b""
            if not got:
                return None
            self._bytes += got
        line, _, self._bytes = self._bytes.partition(b"\n")
        return line.decode(errors="replace")
