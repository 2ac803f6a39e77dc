"""tmux with two editors in it, each with text that has been typed and not been saved for a while."""
import os, pty, subprocess, threading, time
from service import bad, same, well

TMUX = ["tmux", "-S", "/work/tmux.sock", "-f", "/dev/null"]
os.environ.update(TERM="xterm", HOME="/work", LC_ALL="C.UTF-8")
os.mkdir("/work/texts")
pid, terminal = pty.fork()
if pid == 0:
    os.execvp("tmux", [*TMUX, "new-session", "-s", "main", "-x", "100", "-y", "40", "cat"])
threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(terminal, 65536), b"")], daemon=True).start()


def tmux(*words, patient=False):
    while True:
        done = subprocess.run([*TMUX, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout
        if not patient:
            bad(f"tmux {words}: {done.stderr}")
        time.sleep(0.01)


class Editor:
    """What it shows lags behind what is typed; what has been saved is in the file sooner or later."""

    def __init__(self, name, command, before, after, save):
        self.name, self.before, self.after, self.save = name, before, after, save
        self.path, self.saved, self.text = f"/work/texts/{name}", "", ""
        tmux("new-window", "-t", "main:", "-n", name, f"{command} {self.path}", patient=True)

    def keys(self, *words):
        tmux("send-keys", "-t", f"main:{self.name}", *words)

    def type(self, line):
        self.keys(*self.before)
        self.keys("-l", line)
        self.keys(*self.after)
        self.text += line + "\n"
        while line not in tmux("capture-pane", "-p", "-t", f"main:{self.name}"):
            time.sleep(0.01)
        same(f"what {self.name} has saved", self.content(), self.saved)

    def content(self):
        try:
            with open(self.path) as f:
                return f.read()
        except FileNotFoundError:
            return ""

    def write(self):
        self.keys(*self.save)
        # While it is being written it is shorter than both.
        while (content := self.content()) != self.text:
            if not self.text.startswith(content):
                bad(f"{self.name} has saved {content!r}, not {self.text!r}")
            time.sleep(0.01)
        self.saved = self.text


editors = [
    Editor("vim", "vim.tiny -u NONE -i NONE", ["G", "o"], ["Escape"], [":w", "Enter"]),
    Editor("nano", "nano --ignorercfiles --nonewlines", [], ["Enter"], ["C-s"]),
]
# Its first line is there already.
editors[0].type("The first one")
editors[0].text = "\n" + editors[0].text
for n in range(1, 1 << 60):
    for editor in editors:
        editor.type(f"This is line {n} of what nobody has saved yet.")
        if n % 7 == 0:
            editor.write()
    well()
