"""Runs the commands of one VM run, inside the VM, as the users they are for.

Started as root by the image's ``forge-vm.service``, which has unpacked the second disk: this file and ``steps.json`` in
``/opt/forge-vm``, the project in ``/opt/project``. What the commands print goes to one virtio port, what becomes of
them (JSON lines) to another; run-in-vm reads both. When this ends, systemd powers the machine off.

It uses the standard library only, and must not depend on the project: the project is what is tested.
"""

import compileall
import json
import os
import pwd
import select
import subprocess
import sys
import tomllib
from pathlib import Path

PROJECT = Path("/opt/project")
VENV = Path("/opt/forge-venv")
PIPE_BYTES = 65536


def install_project() -> None:
    """Give the project what an installation would: its metadata, entry points, console scripts, compiled modules.

    The folder itself is on the venv's path already, and belongs to root. Nothing is built, which would take long here.
    """
    pyproject = PROJECT / "pyproject.toml"
    project = tomllib.loads(pyproject.read_text()).get("project") if pyproject.exists() else None
    if not project:
        return
    name, version = project["name"].replace("-", "_"), project.get("version", "0")
    info = next(VENV.glob("lib/python3*/site-packages")) / f"{name}-{version}.dist-info"
    info.mkdir(exist_ok=True)  # from before the power went
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {version}\n")
    groups = {"console_scripts": project.get("scripts", {}), **project.get("entry-points", {})}
    lines = (f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()) for group, entries in groups.items())
    (info / "entry_points.txt").write_text("\n".join(lines))
    for script, target in groups["console_scripts"].items():
        module, function = target.split(":")
        path = VENV / "bin" / script
        path.write_text(f"#!{VENV}/bin/python\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
        path.chmod(0o755)
    compileall.compile_dir(PROJECT / name, quiet=2, workers=2)  # or every process of another user would compile anew


def command_as(user: str, command: list[str]) -> list[str]:
    """The argv that runs `command` in the project's folder as `user`, the venv first on its PATH.

    root and newcomer log in (PAM, a logind session, XDG_RUNTIME_DIR). A service user does not log in: it gets what a
    systemd unit with ``User=`` and ``Delegate=yes`` would give it.
    """
    inside = f'cd {PROJECT} && PATH={VENV}/bin:$PATH && export PATH && exec "$@"'
    if user != "forge":
        return ["su", "-l", user, "-c", inside, "--", "sh", *command]
    service = [
        "systemd-run",
        "--quiet",
        "--pipe",
        "--wait",
        "--collect",
        f"--uid={user}",
        "-p",
        "Delegate=yes",
        "-p",
        "CPUWeight=10",
    ]
    words = ["/bin/sh", "-c", inside, "sh", *command]
    return [*service, "--", *(word.replace("$", "$$") for word in words)]  # systemd would expand variables itself


def run(user: str, command: list[str], output: int) -> int:
    """Run one command to its end, copying what it prints to `output`. Returns its exit status (128 + a signal)."""
    reading, writing = os.pipe()  # a port can be opened once: with a pipe, `>/dev/stderr` works for the command
    os.fchown(writing, pwd.getpwnam(user).pw_uid, -1)
    process = subprocess.Popen(command_as(user, command), stdin=subprocess.DEVNULL, stdout=writing, stderr=writing)
    os.close(writing)
    left = PIPE_BYTES  # at most this much of its own output is in the pipe when it has ended;
    while left > 0:  # what it left running may hold the pipe for ever, and write to it
        ended = process.poll() is not None
        if select.select([reading], [], [], 0 if ended else 0.2)[0]:
            text = os.read(reading, PIPE_BYTES)
            if not text:
                break
            if ended:
                left -= len(text)
            while text:
                text = text[os.write(output, text) :]
        elif ended:
            break
    os.close(reading)
    status = process.wait()
    return status if status >= 0 else 128 - status


def main() -> None:
    output = os.open("/dev/virtio-ports/forge.output", os.O_WRONLY)
    with open("/dev/virtio-ports/forge.report", "w", buffering=1) as report:
        steps = json.loads(Path("/opt/forge-vm/steps.json").read_text())
        install_project()
        for number, step in enumerate(steps, start=1):
            print(json.dumps({"event": "start", "step": number}), file=report)
            if len(steps) > 1:
                os.write(output, f"=== step {number} of {len(steps)}, as {step['user']}\n".encode())
            status = run(step["user"], step["command"], output)
            print(json.dumps({"event": "end", "step": number, "exit_status": status}), file=report)


if __name__ == "__main__":
    sys.exit(main())
