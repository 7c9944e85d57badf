#!/usr/bin/env python3
"""One command for everything: python3 run.py serve | test | lint | check | docs | <any freeloop command>.

It makes a virtual environment in this folder, installs the locked dependencies, and runs the command in it.
Nothing but Python 3.11 or newer is needed; uv, where it is there, makes the first run faster.
"""

import hashlib
import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.abspath(__file__))
OLDEST = (3, 11)


def main(arguments):  # noqa: ANN001, ANN201, D103 - no annotations: old Pythons read this file too
    if sys.version_info < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        sys.exit(
            f"run.py: expected Python {wanted} or newer, this is {sys.version.split()[0]} ({sys.executable})"
        )
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.exit(__doc__)
    command, rest = arguments[0], arguments[1:]
    python = prepare("bench" if command == "bench" else "dev")
    steps = {
        "test": [["-m", "pytest", *rest]],
        "lint": LINT,
        "check": [
            ["-m", "handbook", "--write"],
            ["-m", "ruff", "format", "."],
            ["-m", "ruff", "check", "--fix", "."],
            *LINT[2:],
            ["-m", "pytest", *rest],
        ],
        "bench": [["-m", "bench", *rest]],
        "screenshots": [["tests/browser/screenshots.py"]],
        "docs": [["-m", "handbook", *rest]],
    }.get(command)
    if steps is None:
        execute([sibling(python, "freeloop"), command, *rest])
    for step in steps[:-1]:
        run([python, *step])
    execute([python, *steps[-1]])


LINT = [
    ["-m", "ruff", "format", "--check", "."],
    ["-m", "ruff", "check", "."],
    ["-m", "mypy"],
    ["-c", "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"],
]


def prepare(group):  # noqa: ANN001, ANN201
    """Return the Python of a virtual environment that holds what the group's lock file names."""
    suffix = "" if group == "dev" else "-" + group
    folder = os.path.join(ROOT, ".venv-%d.%d%s" % (*sys.version_info[:2], suffix))
    python = (
        os.path.join(folder, "Scripts", "python.exe")
        if os.name == "nt"
        else os.path.join(folder, "bin", "python")
    )
    lock = os.path.join(ROOT, "requirements", group + ".txt")
    digest = hashlib.sha256()
    for path in (lock, os.path.join(ROOT, "pyproject.toml")):
        with open(path, "rb") as file:
            digest.update(file.read())
    digest.update(ROOT.encode())
    stamp = os.path.join(folder, "installed")
    if os.path.exists(stamp):
        with open(stamp) as file:
            if file.read() == digest.hexdigest():
                return python
    base = getattr(sys, "_base_executable", sys.executable)  # not of the environment that goes
    shutil.rmtree(folder, ignore_errors=True)
    print("run.py: the first run sets up", folder, file=sys.stderr, flush=True)
    uv = shutil.which("uv")
    if uv:
        run([uv, "venv", "--quiet", "--python", base, folder])
        install = [uv, "pip", "install", "--quiet", "--python", python]
    else:
        made = subprocess.run([base, "-m", "venv", folder], capture_output=True, text=True, check=False)
        if made.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            sys.exit(
                f"run.py: this Python cannot make a virtual environment:\n{made.stdout}{made.stderr}"
                "On Debian and Ubuntu: apt install python3-venv"
            )
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*install, "--require-hashes", "-r", lock])
    run([*install, "--no-deps", "--no-build-isolation", "-e", ROOT])
    with open(stamp, "w") as file:
        file.write(digest.hexdigest())
    return python


def sibling(python, name):  # noqa: ANN001, ANN201, D103
    return os.path.join(os.path.dirname(python), name + (".exe" if os.name == "nt" else ""))


def run(command):  # noqa: ANN001, ANN201, D103
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def execute(command):  # noqa: ANN001, ANN201
    """Become the command, so that signals and the exit code are its own."""
    if os.name == "nt":
        sys.exit(subprocess.run(command, check=False).returncode)
    os.chdir(ROOT)
    os.execv(command[0], command)  # noqa: S606 - becoming the command is the purpose


if __name__ == "__main__":
    main(sys.argv[1:])
