#!/usr/bin/python3
"""Stands in for `kennel build-worker`: does what the job's `repo_url` says."""
import json
import os
import signal
import subprocess
import sys

_, phase, build = sys.argv[1:4]
state = sys.argv[sys.argv.index("--state-dir") + 1]
work, logs = os.path.join(state, "work", build), os.path.join(state, "logs", build)
with open(os.path.join(work, "job.json"), encoding="utf-8") as file:
    job = json.load(file)
mode, _, detail = job["repo_url"].partition(":")


def look(path):
    try:
        return sorted(os.listdir(path))
    except OSError as error:
        return error.strerror


def report(value):
    with open(os.path.join(work, ".draft"), "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.rename(os.path.join(work, ".draft"), os.path.join(work, phase + ".json"))


print("the worker runs", flush=True)
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    subprocess.Popen(["sh", "-c", "trap '' TERM; while :; do :; done"])
    open(os.path.join(work, "busy"), "w").close()
    while True:
        pass
if mode == "gate":
    with open(os.path.join(work, "gate")) as gate:
        gate.read()
if mode == "exit":
    sys.exit(int(detail))
if mode == "evil":
    os.symlink("/etc/shadow", os.path.join(work, phase + ".json"))
    os.symlink("/etc", os.path.join(work, "out"))
    # What the daemon writes, and what it removes.
    for name in ["job.json", ".job.json.new", "cache"]:
        if os.path.lexists(os.path.join(work, name)):
            os.remove(os.path.join(work, name))
    os.symlink("/etc/shadow", os.path.join(work, "job.json"))
    os.symlink("/etc/shadow", os.path.join(work, ".job.json.new"))
    os.symlink("/srv/kept", os.path.join(work, "cache"))
    os.symlink("/srv/kept", os.path.join(logs, "deep"))
    os.symlink("/etc/shadow", os.path.join(logs, "api.log"))
    sys.exit(0)
if mode == "output":
    os.mkdir(os.path.join(work, "out"))
    os.symlink(detail, os.path.join(work, "out", "api"))
credentials = os.environ.get("CREDENTIALS_DIRECTORY")
report({
    "uid": os.getuid(),
    "env": dict(os.environ),
    "state": look(os.path.dirname(os.path.dirname(work))),
    "works": look(os.path.dirname(work)),
    "logs": look(os.path.join(os.path.dirname(os.path.dirname(work)), "logs")),
    "run": look("/run/kennel"),
    "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
    "credentials": {name: open(os.path.join(credentials, name)).read() for name in os.listdir(credentials)}
    if credentials
    else None,
    "nix": subprocess.run(["nix-store", "--version"], capture_output=True, text=True).returncode,
    "store": subprocess.run(["nix", "store", "info"], capture_output=True, text=True).stderr.strip(),
})
