"""tmux with a shell in it, and somebody attached to it who types."""
import os, pty, subprocess, threading
from service import bad, same, well

TMUX = ["tmux", "-S", "/work/tmux.sock", "-f", "/dev/null"]
os.environ.update(TERM="xterm", HOME="/work", LC_ALL="C.UTF-8")
os.mkfifo("/work/answers")
# Whoever only reads would see an end whenever nobody writes.
answers = os.fdopen(os.open("/work/answers", os.O_RDWR), "rb", 0)
pid, terminal = pty.fork()
if pid == 0:
    os.execvp("tmux", [*TMUX, "new-session", "-s", "main", "-x", "100", "-y", "40", "bash --norc"])
threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(terminal, 65536), b"")], daemon=True).start()


def tmux(*words):
    done = subprocess.run([*TMUX, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else bad(f"tmux {words}: {done.stderr}")


os.write(terminal, b"n=0; tty > /work/answers\n")
tty = answers.readline().decode()
for n in range(1, 1 << 60):
    # What is typed at the terminal goes through tmux to the shell, which knows how often that was.
    os.write(terminal, b"n=$((n + 1)); echo $n $(tty) > /work/answers; echo this is $n\n")
    same("an answer", answers.readline().decode(), f"{n} {tty}")
    if n % 10 == 0:
        same("who is attached", tmux("list-clients", "-F", "#{session_name} #{client_pid}"), f"main {pid}\n")
        tmux("send-keys", "-t", "main", "clear; echo the screen has $n > /work/answers", "Enter")
        same("what was sent", answers.readline().decode(), f"the screen has {n}\n")
        well()
