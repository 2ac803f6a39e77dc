"""stress-ng, round by round: each of its stressors verifies what it does, and a round is over when all have done so."""
import subprocess
from service import bad, well

STRESSORS = {"cpu": 2, "vm": 50, "fork": 10, "pipe": 500, "poll": 200, "sock": 2, "udp": 100,
             "eventfd": 500, "msg": 500, "shm-sysv": 1}
words = [word for name, ops in STRESSORS.items() for word in (f"--{name}", "1", f"--{name}-ops", str(ops))]
while True:
    done = subprocess.run(["stress-ng", "--verify", "--temp-path", "/work", "--vm-bytes", "16m", *words],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        bad(done.stdout + done.stderr)
    well()
