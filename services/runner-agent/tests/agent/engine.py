"""A small engine for tests: OpenAI-shaped, and told by the request what to do.

engine.py PORT [--load SECONDS] [--die-at-start]
A request's "do" says: "stream" (n pieces of size bytes, delay seconds apart), "plain", "die" (after n pieces),
"hang" (until the client leaves). A path that begins with /echo is answered with what came; /sound comes in two pieces, the
second when /sound/on is asked for. With VLLM_SERVER_DEV_MODE=1 it sleeps and wakes as vLLM does, and as there a request
to it waits while it sleeps; --no-sleep and --no-wake have it fail at that. /stats tells what it was asked to do.
"""
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GO_ON = threading.Event()
STATS = {"requests": 0, "connections": 0, "aborted": 0, "bodies": [], "calls": []}
ASLEEP = set()
ROUTES = ("/sleep", "/wake_up", "/collective_rpc", "/reset_prefix_cache")
READY_AT = time.time() + (float(sys.argv[sys.argv.index("--load") + 1]) if "--load" in sys.argv else 0)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    counted = False

    def log_message(self, *_):
        pass

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def other(self):
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.startswith("/echo") or self.path.startswith("/v1/audio"):
            kind = self.headers.get("Content-Type")
            self.answer(200, {"method": self.command, "path": self.path, "type": kind, "text": raw.decode("latin1"),
                              "length": self.headers.get("Content-Length")})
        elif self.path == "/sound":
            self.send_response(200)
            self.send_header("Content-Type", "audio/wav")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.chunk(b"first")
            GO_ON.wait(20)
            self.chunk(b"second")
            self.chunk(b"")
        else:
            GO_ON.set()
            self.answer(200, {})

    do_PUT = do_DELETE = other

    def do_GET(self):
        if self.path.startswith(("/echo", "/sound")):
            self.other()
        elif self.path == "/is_sleeping" and os.environ.get("VLLM_SERVER_DEV_MODE") == "1":
            self.answer(200, {"is_sleeping": bool(ASLEEP)})
        elif self.path == "/is_sleeping":
            self.answer(404, {})
        elif self.path == "/stats":
            self.answer(200, STATS)
        elif self.path == "/health" and time.time() >= READY_AT:
            self.answer(200, {"status": "ok"})
        else:
            self.answer(503, {"status": "loading"})

    def do_POST(self):
        if self.path.startswith(("/echo", "/v1/audio")):
            return self.other()
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.startswith(ROUTES):
            return self.turn()
        while ASLEEP:
            time.sleep(0.01)
        STATS["requests"] += 1
        # One handler is made for each connection.
        if not self.counted:
            self.counted = True
            STATS["connections"] += 1
        STATS["bodies"].append({"text": raw[:200].decode(), "traceparent": self.headers.get("traceparent")})
        body = json.loads(raw)
        do = body.get("do", "plain")
        try:
            if do == "plain":
                usage = {"prompt_tokens": len(raw), "completion_tokens": 2}
                self.answer(200, {"model": body["model"], "usage": usage})
            elif do == "hang":
                while self.connection.recv(1):
                    pass
                raise BrokenPipeError
            else:
                self.stream(body, do)
        except (BrokenPipeError, ConnectionResetError):
            STATS["aborted"] += 1
            self.close_connection = True

    def turn(self):
        STATS["calls"].append(self.path)
        if "--no-wake" in sys.argv and self.path.startswith("/wake_up"):
            return self.answer(500, {})
        if self.path.startswith("/sleep") and "--no-sleep" not in sys.argv:
            ASLEEP.update(("weights", "kv_cache"))
        elif self.path.startswith("/wake_up"):
            ASLEEP.difference_update(self.path.partition("tags=")[2].split() or ("weights", "kv_cache"))
        self.answer(200, {})

    def stream(self, body, do):
        n, size, delay = body.get("n", 3), body.get("size", 10), body.get("delay", 0)
        if do == "die" and n == 0:
            print("dying before the first byte", flush=True)
            os._exit(7)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for i in range(n):
            self.chunk(b"data: " + (b"%d " % i).ljust(size, b"x") + b"\n\n")
            time.sleep(delay)
        if do == "die":
            print("dying on request", flush=True)
            os._exit(7)
        usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": n}}
        self.chunk(b"data: " + json.dumps(usage).encode() + b"\n\n")
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")


if "--die-at-start" in sys.argv:
    print("loading weights", flush=True)
    print("error: the weights are made of cheese", file=sys.stderr, flush=True)
    sys.exit(3)
server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
server.daemon_threads = True
server.serve_forever()
