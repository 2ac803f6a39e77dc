"""supervisord with workers that count, and one that it has to start again and again."""
import itertools, os, subprocess
from service import connect, same, serve, well

CONFIG = """
[unix_http_server]
file=/work/supervisor.sock
[supervisord]
nodaemon=true
user=root
logfile=/work/log
pidfile=/work/pid
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix:///work/supervisor.sock
[program:counter]
command=sh -c 'n=0; while sleep 0.01; do n=$((n+1)); echo $n; done'
numprocs=3
process_name=%(process_num)d
stdout_logfile=/work/counter-%(process_num)d
stdout_logfile_maxbytes=0
[program:mortal]
command=sh -c 'read x < /work/fate; exit 1'
autorestart=true
startsecs=0
"""
with open("/work/config", "w") as f:
    f.write(CONFIG)
os.mkfifo("/work/fate")
serve("supervisord", "-c", "/work/config")
connect("/work/supervisor.sock").close()


def status():
    words = ["supervisorctl", "-c", "/work/config", "status", "counter:*"]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    return {line[0]: (line[1], line[3]) for line in lines if len(line) > 3}


def running(all):
    return len(all) == 3 and {state for state, _ in all.values()} == {"RUNNING"}


while not running(first := status()):
    pass
def lines(path):
    """Whole lines of a file that grows."""
    rest = ""
    with open(path) as f:
        while True:
            rest += f.readline()
            if rest.endswith("\n"):
                yield rest
                rest = ""


logs = [lines(f"/work/counter-{n}") for n in range(3)]
for n in itertools.count(1):
    same("the workers and their pids", status(), first)
    for log in logs:
        same("what a worker has written", next(log), f"{n}\n")
    # It dies, and another one comes.
    with open("/work/fate", "w") as fate:
        fate.write("die\n")
    well()
