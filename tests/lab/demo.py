"""The inside of `lab demo`: a forge with the example repository, kennel, and a push to it.

usage: demo.py up | push [--change [slow]]

`up` starts the forge and kennel; `push` pushes, sends the webhook as Forgejo does, and shows what
becomes of it. Runs as root in the lab's machine.
"""

import hashlib
import hmac
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

SOURCE = Path("/lab/source")
CLONE = Path("/srv/hello")
FORGE = Path("/srv/forge")
BARE = FORGE / "demo/hello.git"
SECRET = Path("/etc/kennel/hello-webhook")
UNITS = Path("/etc/systemd/system")
ROUTER_PORT, API_PORT, FORGE_PORT = (
    int(os.environ.get(name, default))
    for name, default in [("ROUTER_PORT", 8080), ("API_PORT", 3000), ("FORGE_PORT", 3001)]
)
API = f"http://127.0.0.1:{API_PORT}"
CLONE_URL = f"http://127.0.0.1:{FORGE_PORT}/demo/hello.git"
FINISHED = {"success", "failed", "cancelled", "superseded"}
SETTLED = {"live", "failed", "cancelled", "noop", "retired", "draining"}
TIME_LIMIT_SECONDS = 180

CONFIG = f"""\
base_domain = "localhost"

[api]
listen = "127.0.0.1:{API_PORT}"

[router]
http = "0.0.0.0:{ROUTER_PORT}"

[projects.hello]
repo_url = "{CLONE_URL}"
repo_type = "forgejo"
webhook_secret_file = "{SECRET}"
default_branch = "main"
"""

SLOW = """\
# A build to be cancelled.
second=0
while [ $second -lt 60 ]; do
  second=$((second + 1)) until=$((SECONDS + 1))
  echo "second $second of 60"
  while [ $SECONDS -lt $until ]; do :; done
done
"""


def run(*command, cwd=None):
    """Runs a command; its output is shown only when it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"`{' '.join(map(str, command))}` failed:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def git(*arguments):
    you = ["-c", "user.name=You", "-c", "user.email=you@example.com"]
    return run("git", *you, *arguments, cwd=CLONE)


def up():
    """Makes the repository, starts the forge and kennel, and waits for kennel's API."""
    shutil.copytree(SOURCE / "examples/hello", CLONE)
    git("init", "--quiet", "--initial-branch=main")
    git("add", "--all")
    git("commit", "--quiet", "--message=A service and a site")
    run("git", "init", "--quiet", "--bare", "--initial-branch=main", BARE)
    # As Forgejo has it: kennel fetches the very commit it was told of.
    run("git", "-C", BARE, "config", "uploadpack.allowAnySHA1InWant", "true")
    git("remote", "add", "origin", str(BARE))
    forge = ["python3", "-I", SOURCE / "tests/lab/forge.py", FORGE, str(FORGE_PORT)]
    run("systemd-run", "--quiet", "--unit=forge", *forge)

    install_units()
    SECRET.parent.mkdir(exist_ok=True)
    SECRET.touch(mode=0o600)
    SECRET.write_text(uuid.uuid4().hex)
    shutil.chown(SECRET, "kennel")
    (SECRET.parent / "config.toml").write_text(CONFIG)
    run("systemctl", "start", "kennel.service")
    await_answer(f"{API}/healthz")
    await_answer(f"http://127.0.0.1:{FORGE_PORT}/demo/hello.git/HEAD")


def install_units():
    """The daemon's user, and beside kennel.service what it asks for; it binds its own ports."""
    user = ["--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin"]
    run("useradd", *user, "--gid", "kennel", "--groups", "nix-users", "kennel")
    for name in ["kennel-host.service", "kennel-host.socket"]:
        shutil.copy(SOURCE / "systemd" / name, UNITS / name)
    lines = (SOURCE / "systemd/kennel.socket").read_text().splitlines()
    unix = [line for line in lines if not line.startswith("ListenStream=") or line.endswith(".sock")]
    (UNITS / "kennel.socket").write_text("\n".join(unix) + "\n")
    run("systemctl", "daemon-reload")


def await_answer(url):
    deadline = time.monotonic() + 15
    while True:
        try:
            return urllib.request.urlopen(url, timeout=5).read()
        except OSError as error:
            if time.monotonic() > deadline:
                sys.exit(f"{url} does not answer: {error}")
            time.sleep(0.05)


def change(slow):
    """Edits the example as a developer would, and commits."""
    count = int(git("rev-list", "--count", "HEAD"))
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    version = words[count] if count < len(words) else str(count + 1)
    edit(CLONE / "api/bin/hello", r'VERSION = ".*?"', f'VERSION = "{version}"')
    edit(CLONE / "web/index.html", r"(<b id=\"version\">).*?(</b>)", rf"\g<1>{version}\g<2>")
    build = SOURCE.joinpath("examples/hello/build.sh").read_text()
    (CLONE / "build.sh").write_text((SLOW if slow else "") + build)
    git("commit", "--quiet", "--all", f"--message=Version {version}")


def edit(path, pattern, replacement):
    path.write_text(re.sub(pattern, replacement, path.read_text(), count=1))


def push():
    """Pushes, and tells kennel as Forgejo would. Gives the build's id."""
    before = run("git", "-C", BARE, "for-each-ref", "--format=%(objectname)", "refs/heads/main")
    git("push", "--quiet", "origin", "main")
    commit, subject = git("log", "-1", "--format=%H %s").split(" ", 1)
    author = {"name": "You", "email": "you@example.com", "username": "you"}
    head = {"id": commit, "message": subject, "author": author, "committer": author}
    body = json.dumps(
        {
            "ref": "refs/heads/main",
            "before": before or "0" * 40,
            "after": commit,
            "commits": [head],
            "head_commit": head,
            "repository": {
                "id": 1,
                "name": "hello",
                "full_name": "demo/hello",
                "owner": {"id": 1, "login": "demo"},
                "clone_url": CLONE_URL,
                "default_branch": "main",
            },
            "pusher": {"id": 2, "login": "you"},
            "sender": {"id": 2, "login": "you"},
        }
    ).encode()
    headers = {
        "Content-Type": "application/json",
        "X-Forgejo-Event": "push",
        "X-Forgejo-Delivery": str(uuid.uuid4()),
        "X-Forgejo-Signature": hmac.new(SECRET.read_bytes(), body, hashlib.sha256).hexdigest(),
    }
    stage("pushed", f"{commit[:12]} “{subject}” to main")
    request = urllib.request.Request(f"{API}/webhook/hello", body, headers)
    answer = json.load(urllib.request.urlopen(request, timeout=10))
    if "build" not in answer:
        sys.exit(f"kennel had nothing to do: {answer}")
    return answer["build"]


STARTED = time.monotonic()
PRINTING = threading.Lock()


def stage(name, text=""):
    with PRINTING:
        print(f"{time.monotonic() - STARTED:6.2f} s  {name:<9} {text}".rstrip(), flush=True)


def get(path):
    return json.load(urllib.request.urlopen(API + path, timeout=10))


def rows(answer, name):
    """The list in an answer, whether it is the answer or lies in it under its name."""
    return answer[name] if isinstance(answer, dict) else answer


def follow(build):
    """Shows the build's states and logs until it is finished. Gives its last answer."""
    seen, logs, deadline = None, {}, time.monotonic() + TIME_LIMIT_SECONDS
    while time.monotonic() < deadline:
        answer = get(f"/builds/{build}")
        if answer["state"] != seen:
            seen = answer["state"]
            if seen not in FINISHED:
                stage(seen, f"build {build}")
        if seen != "queued":
            for service in ["api", "web"]:
                if service not in logs:
                    log = threading.Thread(target=show_log, args=(build, service), daemon=True)
                    log.start()
                    logs[service] = log
        if seen in FINISHED:
            for log in logs.values():
                log.join(timeout=5)
            stage("built" if seen == "success" else seen, f"build {build}")
            return answer
        time.sleep(0.05)
    sys.exit(f"build {build} is still {seen} after {TIME_LIMIT_SECONDS} s")


def show_log(build, service):
    """Streams one service's log, from when there is one until the build has ended."""
    url = f"{API}/builds/{build}/logs/{service}?follow=1"
    for _ in range(200):
        try:
            log = urllib.request.urlopen(url, timeout=TIME_LIMIT_SECONDS)
        except urllib.error.HTTPError:
            time.sleep(0.05)
            continue
        except OSError:
            return
        for line in log:
            stage("", f"{service} │ {line.decode(errors='replace').rstrip()}")
        return


def await_live(build):
    """Shows each deployment of the build until all have settled. Says whether all are live."""
    seen, deadline = {}, time.monotonic() + TIME_LIMIT_SECONDS
    while time.monotonic() < deadline:
        answer = rows(get("/deployments"), "deployments")
        deployments = [row for row in answer if row.get("build") == build]
        for row in deployments:
            now = (row["state"], row.get("step"))
            if seen.get(row["id"]) != now:
                seen[row["id"]] = now
                step = None if row["state"] in SETTLED else row.get("step")
                words = [row["service"], step, row.get("reason")]
                stage(row["state"], " ".join(filter(None, words)))
        if deployments and all(row["state"] in SETTLED for row in deployments):
            return all(row["state"] in {"live", "noop"} for row in deployments)
        time.sleep(0.02)
    return False


def visit(host):
    url = f"http://{host}:{ROUTER_PORT}/"
    print(f"\n$ curl {url}", flush=True)
    answer = run("curl", "--silent", "--show-error", "--max-time", "10", url)
    lines = answer.splitlines()
    print("\n".join(lines[:14] + (["…"] if len(lines) > 14 else [])))


def main():
    if sys.argv[1] == "up":
        return up()
    slow = "slow" in sys.argv
    if "--change" in sys.argv:
        change(slow)
    build = push()
    stage("accepted", f"as build {build}")
    if slow:
        print(f"\nIt takes a minute. Follow it, and cancel it:\n"
              f"  tests/lab/lab shell kennel logs --build {build} -f\n"
              f"  tests/lab/lab shell kennel cancel {build}")
        return
    built = follow(build)
    if built["state"] != "success" or not await_live(build):
        sys.exit(1)
    visit("api-main.hello.localhost")
    visit("web-main.hello.localhost")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        main()
    except urllib.error.HTTPError as error:
        sys.exit(f"{error.url} answered {error.code}: {error.read().decode(errors='replace')}")
