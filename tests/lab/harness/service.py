#!/usr/bin/python3 -I
"""The service of the lab's test repositories: tells who it is, and misbehaves when it is told to."""

import base64
import ctypes
import hashlib
import json
import mmap
import os
import socket
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

VERSION = "@VERSION@"
MODE, _, DETAIL = "@MODE@".partition(":")

PORT = int(os.environ["PORT"])
DATA = os.path.join(os.environ["KENNEL_DATA_DIR"], "data")


class Service(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        path, _, query = self.path.partition("?")
        if path == "/health":
            self.answer(*health())
        elif path == "/":
            self.answer(200, {"version": VERSION, "pid": os.getpid(), "listening_at": self.server.listening_at})
        elif path == "/slow":
            time.sleep(float(query or 1.5))
            self.answer(200, {"version": VERSION})
        elif path == "/env":
            self.answer(200, dict(os.environ))
        elif path == "/headers":
            self.answer(200, {name.lower(): value for name, value in self.headers.items()})
        elif path == "/data":
            with open(DATA, encoding="utf-8") as file:
                self.answer(200, file.read())
        elif path == "/fetch":
            self.answer(200, fetch(query))
        elif path == "/read":
            self.answer(200, read(query))
        elif path == "/valkey":
            self.answer(200, valkey(query.split(",")))
        elif path == "/crash":
            os._exit(4)
        elif path == "/ws":
            self.echo()
        else:
            self.answer(404, {"nothing": path})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with open(DATA, "wb") as file:
            file.write(body)
        self.answer(200, len(body))

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def echo(self):
        """A WebSocket that sends back what it gets (RFC 6455), in frames of less than 126 bytes."""
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.close_connection = True
        while True:
            head = self.rfile.read(6)
            if len(head) < 6:
                return
            length, mask = head[1] & 0x7F, head[2:]
            payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(self.rfile.read(length)))
            self.wfile.write(bytes([head[0], length]) + payload)
            if head[0] & 0xF == 8:
                return

    def log_message(self, format, *args):
        pass


def health():
    if MODE == "sick":
        return 503, "not today"
    if MODE == "gated" and not os.path.exists(DETAIL):
        return 503, "waiting"
    return 200, "ok"


def fetch(query):
    """Asks another server for something, as METHOD,URL; tells the status."""
    method, _, url = query.partition(",")
    data = b"" if method == "POST" else None
    try:
        return urllib.request.urlopen(urllib.request.Request(url, data, method=method), timeout=5).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError as error:
        return str(error)


def valkey(words):
    """Sends Valkey a command in the database of this branch; tells the reply as it came."""
    url = urllib.parse.urlsplit(os.environ["VALKEY_URL"])
    commands = ["AUTH", url.username, url.password], ["SELECT", url.path[1:]], words
    try:
        with socket.create_connection((url.hostname, url.port), timeout=5) as server, server.makefile("rb") as replies:
            for command in commands:
                parts = [b"$%d\r\n%s\r\n" % (len(word), word.encode()) for word in command]
                server.sendall(b"*%d\r\n" % len(parts) + b"".join(parts))
                reply = replies.readline().decode().strip()
                if reply.startswith("-"):
                    break
            return replies.readline().decode().strip() if reply.startswith("$") and reply != "$-1" else reply
    except OSError as error:
        return f"error: {error}"


def read(path):
    try:
        if os.path.isdir(path):
            return sorted(os.listdir(path))
        with open(path, "rb") as file:
            return file.read(4096).decode(errors="replace")
    except OSError as error:
        return f"error: {error.strerror}"


def forbidden(what):
    """Does what the sandbox refuses unless the service has that opt-out."""
    if what == "proc":
        with open("/proc/meminfo", encoding="utf-8") as file:
            file.readline()
    elif what == "netlink":
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()
    elif what == "resources":
        os.setpriority(os.PRIO_PROCESS, 0, 19)
    elif what == "devices":
        with open("/dev/kennel-lab", "rb") as file:
            file.read(1)
    elif what == "namespaces":
        os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNS)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None) != 0:
            raise OSError(ctypes.get_errno(), "mount")
    elif what == "network-raw":
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    elif what == "foreign-abi":
        i386_call()
    print(f"did what `{what}` allows", flush=True)


def i386_call():
    """getpid(2) as a 32-bit program asks for it: mov eax, 20; int 0x80; ret."""
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    assert call() == os.getpid()


def blab():
    """Prints all it was given, in several ways, and dies."""
    names = sorted(name for name in os.environ if name.endswith(("_SECRET", "_KEY", "_URL")))
    for name in names:
        print(f"cannot go on with {name}={os.environ[name]}", flush=True)
    print("as JSON: " + json.dumps({name: os.environ[name] for name in names}), flush=True)
    directory = os.environ["CREDENTIALS_DIRECTORY"]
    for name in sorted(os.listdir(directory)):
        print(read(os.path.join(directory, name)), file=sys.stderr, flush=True)
    sys.exit(3)


class Server(ThreadingHTTPServer):
    # SIGTERM ends it at once: who stops it too early is found out.
    daemon_threads = True
    request_queue_size = 128

    def server_activate(self):
        super().server_activate()
        self.listening_at = time.time() * 1000


def main():
    print(f"this is version {VERSION}", flush=True)
    if MODE == "exit":
        print("cannot go on: the table `dogs` is missing", file=sys.stderr, flush=True)
        sys.exit(3)
    if MODE == "forbidden":
        forbidden(DETAIL)
    if MODE == "blab":
        blab()
    if MODE == "mute":
        threading.Event().wait()
    if MODE == "elsewhere":
        Server(("127.0.0.1", int(DETAIL)), Service).serve_forever()
    if MODE == "late":
        time.sleep(float(DETAIL))
    Server((os.environ["HOST"], PORT), Service).serve_forever()


if __name__ == "__main__":
    main()
