"""redis-server for clients on another host, and one of its own."""
from service import connect, same, serve, well

ADDRESS = "10.77.0.1"
serve("redis-server", "--port", "6379", "--bind", ADDRESS, "--protected-mode", "no", "--dir", "/work", "--save", "",
      "--appendonly", "yes", "--daemonize", "no")
file = connect((ADDRESS, 6379)).makefile("rwb")
for n in range(1, 1 << 60):
    file.write(b"INCR inside\r\n")
    file.flush()
    same("the counter", file.readline(), b":%d\r\n" % n)
    well()
