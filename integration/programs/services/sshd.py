"""sshd with a session at a terminal, one that carries data, and new ones that come and go."""
import os, pty, random, subprocess, threading
from service import bad, beside, connect, same, serve, well

CONFIG = """
Port 2222
ListenAddress 127.0.0.1
HostKey /work/key
AuthorizedKeysFile /work/authorized
StrictModes no
UsePAM no
PermitRootLogin yes
PidFile none
"""
for directory in ("/run/sshd", "/root"):
    os.makedirs(directory, exist_ok=True)
for name in ("key", "own"):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"/work/{name}"], check=True)
os.rename("/work/own.pub", "/work/authorized")
with open("/work/config", "w") as f:
    f.write(CONFIG)
SSH = ["ssh", "-F", "none", "-i", "/work/own", "-p", "2222", "-o", "StrictHostKeyChecking=no", "-o",
       "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "root@127.0.0.1"]
serve("/usr/sbin/sshd", "-D", "-e", "-f", "/work/config")
connect(("127.0.0.1", 2222)).close()


def carry():
    """What goes there comes back."""
    through = subprocess.Popen([*SSH, "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    while True:
        data = random.randbytes(random.choice((1, 1000, 300_000)))
        writer = threading.Thread(target=lambda: (through.stdin.write(data), through.stdin.flush()))
        writer.start()
        same("what came back", through.stdout.read(len(data)) == data, True)
        writer.join()
        yield


def visit():
    while True:
        done = subprocess.run([*SSH, "echo here I am"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        same("a short visit", (done.returncode, done.stdout, done.stderr), (0, "here I am\n", ""))
        yield


os.mkfifo("/work/answers")
# Whoever only reads would see an end whenever nobody writes.
answers = os.fdopen(os.open("/work/answers", os.O_RDWR), "rb", 0)
pid, terminal = pty.fork()
if pid == 0:
    os.environ["TERM"] = "xterm"
    os.execvp("ssh", [SSH[0], "-t", *SSH[1:], "bash --norc --noprofile"])
# Nobody reads what it shows, so that much of it waits.
os.write(terminal, b"stty -echo; PS1=; n=0; tty > /work/answers\n")
tty = answers.readline().decode()
carried, visited = beside(carry), beside(visit)
for n in range(1, 1 << 60):
    os.write(terminal, b"n=$((n + 1)); echo $n $(tty) > /work/answers\n")
    same("an answer", answers.readline().decode(), f"{n} {tty}")
    carried(3)
    if n % 5 == 0:
        visited(1)
    well()
