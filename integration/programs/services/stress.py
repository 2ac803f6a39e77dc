"""stress-ng, run after run: each of its stressors verifies what it does, and a run is over when all have done so. There are
two sets of them, so that one is at work when a run of the other has just ended.

Its stressor pthread is not among them: when it has made as many threads as it was to make, it does not wait for the last one,
which then reads from a stack that has gone (stress-ng 0.15)."""
import os, subprocess
from service import bad, well

SETS = [
    {"cpu": 2, "vm": 50, "fork": 20, "pipe": 500, "futex": 500, "mmap": 1, "epoll": 10, "sem-sysv": 2000,
     "sigsegv": 200, "sockpair": 20, "mprotect": 500, "itimer": 20},
    {"poll": 500, "udp": 100, "eventfd": 500, "msg": 500, "mq": 500, "shm": 1, "shm-sysv": 1, "timer": 500, "sigq": 500,
     "inotify": 1, "vfork": 20, "memfd": 1, "fifo": 500, "flock": 500, "sigfd": 500, "schedpolicy": 10},
]


def start(number):
    words = [word for name, ops in SETS[number].items() for word in (f"--{name}", "1", f"--{name}-ops", str(ops))]
    words = ["stress-ng", "--verify", "--temp-path", "/work", "--vm-bytes", "16m", "--mmap-bytes", "4m", *words]
    with open(f"/work/output-{number}", "w") as output:
        runs[subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output).pid] = number


runs = {}
for number in range(len(SETS)):
    start(number)
while True:
    pid, status = os.wait()
    if pid not in runs:
        continue  # lost its parent
    number = runs.pop(pid)
    with open(f"/work/output-{number}") as output:
        said = output.read()
    if status != 0 or " successful run completed" not in said:
        bad(said)
    start(number)
    well()
