"""`python -m infra.local up|down|status`: one command up, one down. It prints no credentials."""

import argparse
import shlex
import sys
from pathlib import Path

from infra.local.stack import Stack
from metalearn_core.errors import MetalearnError, one_line

_FOLDER = Path(".metalearn/stack")


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks for; return the exit status: 0 done, 1 failed, 2 wrong use."""
    given = _parser().parse_args(arguments)
    try:
        return {"up": _up, "down": _down, "status": _status}[given.verb](given.folder)
    except (MetalearnError, OSError) as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        return getattr(error, "exit_status", 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m infra.local",
        description="The team's servers on this machine: PostgreSQL, an S3 store, MLflow behind a password.",
        epilog='example: eval "$(python -m infra.local up)" && metalearn run',
    )
    parser.add_argument("verb", choices=("up", "down", "status"), help="start, end, or look at the servers")
    parser.add_argument("--folder", type=Path, default=_FOLDER, help=f"of settings, data and logs ({_FOLDER})")
    return parser


def _up(folder: Path) -> int:
    stack = Stack(folder)
    try:
        stack.up()
    except BaseException:
        stack.down()
        raise
    for server in stack.status():
        sys.stderr.write(f"{server.name}: {server.address}\n")
    sys.stderr.write("for this shell (the file holds the passwords, and only you can read it):\n")
    sys.stdout.write(f". {shlex.quote(str(stack.environment_file))}\n")
    return 0


def _down(folder: Path) -> int:
    Stack.at(folder).down()
    return 0


def _status(folder: Path) -> int:
    servers = Stack.at(folder).status()
    for server in servers:
        sys.stdout.write(f"{server.name}: {'runs' if server.running else 'does not run'}: {server.address}\n")
    return 0 if all(server.running for server in servers) else 1


if __name__ == "__main__":
    sys.exit(main())
