// A server, which counts by timers, hashes in its threads and in those of the library; and clients of it.
const http = require("http"), crypto = require("crypto"), fs = require("fs");
const { Worker, isMainThread, parentPort } = require("worker_threads");
const PORT = 8090;

function digest(data) { return crypto.createHash("sha256").update(data).digest("hex"); }

function serve() {
    const workers = [0, 1].map(() => new Worker(__filename)), asked = new Map();
    let ticks = 0, next = 0;
    setInterval(() => ticks++, 5);
    for (const worker of workers) worker.on("message", ({ id, hash }) => { asked.get(id)(hash); asked.delete(id); });
    const server = http.createServer((request, response) => {
        const parts = [];
        request.on("data", part => parts.push(part));
        request.on("end", () => {
            const data = Buffer.concat(parts), id = next++;
            if (request.url === "/ticks") return response.end(`${ticks}`);
            if (request.url === "/derive")
                return crypto.pbkdf2(data, "salt", 10, 32, "sha256", (e, key) => response.end(e ? `${e}` : key.toString("hex")));
            asked.set(id, hash => response.end(hash));
            workers[id % 2].postMessage({ id, data });
        });
    });
    server.keepAliveTimeout = 0;
    server.listen(PORT, "127.0.0.1");
}

const agent = new http.Agent({ keepAlive: true, maxSockets: 6 });

function ask(path, data) {
    return new Promise((resolve, reject) => {
        const request = http.request({ port: PORT, host: "127.0.0.1", method: "POST", path, agent }, response => {
            let text = "";
            response.setEncoding("utf8").on("data", part => text += part).on("end", () => resolve(text));
        });
        request.on("error", reject);
        request.end(data);
    });
}

async function client(n) {
    for (let last = -1; ;) {
        const data = crypto.randomBytes([1, 1000, 100_000, 1_000_000][crypto.randomInt(4)]);
        const path = `/work/node-${n}`;
        await fs.promises.writeFile(path, data);
        if (await ask("/hash", await fs.promises.readFile(path)) !== digest(data)) throw Error(`a wrong hash of ${data.length} bytes`);
        const key = crypto.pbkdf2Sync("password", "salt", 10, 32, "sha256").toString("hex");
        if (await ask("/derive", "password") !== key) throw Error("a wrong key");
        const ticks = +await ask("/ticks", "");
        if (ticks < last) throw Error(`${ticks} ticks, and there were ${last}`);
        last = ticks;
        await new Promise(resolve => setTimeout(resolve, 2));
        process.stdout.write(".");
    }
}

if (!isMainThread) parentPort.on("message", ({ id, data }) => parentPort.postMessage({ id, hash: digest(data) }));
else if (process.argv[2] === "serve") serve();
else Promise.all([0, 1, 2, 3].map(client)).catch(e => { console.error(e); process.exit(1); });
