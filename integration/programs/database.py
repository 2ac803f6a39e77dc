"""A writer and a reader of one SQLite database with a write-ahead log: money moves and none is lost. sys.argv[1] tells."""
import os, random, sqlite3, sys

STATUS, FILE, ACCOUNTS, TOTAL = sys.argv[1], sys.argv[2], 200, 200 * 100


def bad(why):
    with open(STATUS, "w") as f:
        f.write(f"BAD {why}\n")
    os.kill(0, 9)


def connect():
    db = sqlite3.connect(FILE, timeout=30, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=OFF")
    return db


db = connect()
db.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, money INTEGER)")
db.executemany("INSERT INTO account VALUES (?, 100)", [(i,) for i in range(ACCOUNTS)])
db.close()

if os.fork() == 0:
    db = connect()
    while True:
        db.execute("BEGIN IMMEDIATE")
        for _ in range(20):
            a, b, money = random.randrange(ACCOUNTS), random.randrange(ACCOUNTS), random.randrange(50)
            db.execute("UPDATE account SET money = money - ? WHERE id = ?", (money, a))
            db.execute("UPDATE account SET money = money + ? WHERE id = ?", (money, b))
        db.execute("COMMIT")

db = connect()
for n in range(1, 1 << 60):
    total, = db.execute("SELECT sum(money) FROM account").fetchone()
    if total != TOTAL:
        bad(f"{total} is not {TOTAL}")
    if n % 20 == 0:
        found, = db.execute("PRAGMA integrity_check").fetchone()
        if found != "ok":
            bad(found)
        with open(STATUS, "w") as f:
            f.write(f"OK {n // 20}\n")
