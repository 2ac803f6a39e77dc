"""PostgreSQL under pgbench: whatever it has committed adds up in all tables, and nothing of that is ever taken back.

postgres.py [CLIENTS HOST...]: so many clients of one pgbench, of which there is one for each host."""
import glob, os, pwd, subprocess, sys
from service import bad, connect, same, serve, well

BIN = sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1]
user = pwd.getpwnam("nobody")
who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": "/work/pg"}
os.mkdir("/work/pg")
os.chown("/work/pg", user.pw_uid, user.pw_gid)
os.environ.update(PGHOST="/work/pg", PGUSER="nobody", PGDATABASE="postgres", HOME="/work/pg")


def run(*words):
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, **who)
    if done.returncode != 0:
        bad(f"{words}: {done.stderr}")
    return done.stdout


run(f"{BIN}/initdb", "-D", "/work/pg/data", "-A", "trust", "--no-sync", "--locale=C", "-E", "UTF8")
serve(f"{BIN}/postgres", "-D", "/work/pg/data", "-k", "/work/pg", "-c", "listen_addresses=127.0.0.1",
      "-c", "fsync=off", "-c", "max_connections=80", "-c", "shared_buffers=16MB", "-c", "huge_pages=off", **who)
connect("/work/pg/.s.PGSQL.5432").close()
while subprocess.run([f"{BIN}/pg_isready", "-q"], **who).returncode != 0:
    pass
run(f"{BIN}/pgbench", "-i", "-q", "-s", "2")
clients, *hosts = sys.argv[1:] or ("4", "127.0.0.1", "/work/pg")
for host in hosts:
    serve(f"{BIN}/pgbench", "-n", "-h", host, "-c", clients, "-T", "1000000", **who)

# One statement sees one state.
SUMS = """SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
    (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history),
    (SELECT count(*) FROM pgbench_history);\n"""
asks = subprocess.Popen([f"{BIN}/psql", "-XAtq", "-F", " "], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                        bufsize=1, **who)
last = -1
while True:
    asks.stdin.write(SUMS)
    *sums, transactions = map(int, asks.stdout.readline().split())
    same("the sums", len(set(sums)), 1)
    if transactions < last:
        bad(f"{transactions} transactions, and there were {last}")
    if transactions > last:
        last = transactions
        well()
