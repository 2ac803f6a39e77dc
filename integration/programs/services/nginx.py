"""nginx with two workers, and clients with connections that are kept alive, through a proxy and directly."""
import hashlib, http.client, os, random
from service import beside, connect, same, serve, well

CONFIG = """
daemon off; user root; worker_processes 2; pid /work/nginx.pid; error_log /work/error.log;
events { worker_connections 256; }
http {
    access_log off; sendfile on; keepalive_timeout 1d; keepalive_requests 1000000000;
    client_body_temp_path /work/body; proxy_temp_path /work/proxy; fastcgi_temp_path /work/fastcgi;
    uwsgi_temp_path /work/uwsgi; scgi_temp_path /work/scgi;
    upstream files { server unix:/work/files.sock; keepalive 8; }
    server { listen unix:/work/files.sock; root /work/files; }
    server {
        listen 127.0.0.1:8080; root /work/files;
        location /proxied/ { proxy_pass http://files/; proxy_http_version 1.1; proxy_set_header Connection ""; }
    }
}
"""

os.mkdir("/work/files")
digests = {}
for size in (0, 100, 10_000, 3_000_000):
    content = random.randbytes(size)
    digests[f"{size}"] = hashlib.sha256(content).digest()
    with open(f"/work/files/{size}", "wb") as f:
        f.write(content)
with open("/work/nginx.conf", "w") as f:
    f.write(CONFIG)


def fetch(prefix):
    client = http.client.HTTPConnection("127.0.0.1", 8080)
    client.connect()
    # It is this connection or none.
    client.auto_open = 0
    while True:
        name = random.choice(list(digests))
        client.request("GET", f"{prefix}/{name}")
        response = client.getresponse()
        same("a status", response.status, 200)
        same(f"the content of {name}", hashlib.sha256(response.read()).digest(), digests[name])
        yield


serve("/usr/sbin/nginx", "-p", "/work", "-e", "/work/error.log", "-c", "/work/nginx.conf")
connect(("127.0.0.1", 8080)).close()
clients = [beside(fetch, prefix) for prefix in ("", "", "/proxied", "/proxied")]
while True:
    for get_on in clients:
        get_on(10)
    well()
