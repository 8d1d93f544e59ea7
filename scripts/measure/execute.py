"""Carries out one part: its server, its programs, their files, its time limit."""
import os
import pathlib
import signal
import subprocess
import sys
import time

from machine import ROOT

sys.path.append(str(ROOT / "scripts/parity"))
from server import Server, ServerError  # noqa: E402

# Programs get so long to end by themselves when their time is over.
GRACE = 10


class PartFailed(Exception):
    """A program ended with an error, or its time was over."""


def execute(part, limit, folder, environment):
    """Runs the programs of `part` within `limit` seconds; what they print goes to files of its name in `folder`.

    Raises PartFailed with the reason.
    """
    until = time.monotonic() + limit
    if not part.server:
        return run_all(part, until, folder, environment, url="")
    gpus = environment.get("CUDA_VISIBLE_DEVICES")
    try:
        server = Server(list(part.server), folder / f"{part.name}.server.log", gpus and gpus.split(","))
    except ServerError as error:
        raise PartFailed(f"the server: {error}") from error
    with server:
        run_all(part, until, folder, environment, server.url)
        ended = server.process.poll()
    if ended is not None:
        raise PartFailed(f"the server ended meanwhile with {ended}")


def run_all(part, until, folder, environment, url):
    failures = []
    for name, command in part.commands.items():
        out = folder / f"{part.name}.{name}"
        try:
            run(shown(command, url), until, out, environment)
        except PartFailed as failure:
            failures.append(str(failure))
    if failures:
        raise PartFailed("; ".join(failures))


def shown(command, url):
    return [word.replace("{url}", url) for word in command]


def run(command, until, out, environment):
    """One program; standard output to `out`, standard error beside it."""
    err = out.with_name(out.name + ".err")
    with out.open("wb") as output, err.open("wb") as errors:
        # A session of its own, so that whatever it started ends with it.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
                                   env=os.environ | environment, start_new_session=True)
        try:
            code = process.wait(max(1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise PartFailed(f"{pathlib.Path(command[0]).name} was ended, its time was over: {said(out, err)}") from None
        finally:
            end(process)
    if code != 0:
        raise PartFailed(f"{pathlib.Path(command[0]).name} ended with {code}: {said(out, err)}")


def end(process):
    """Asks the program's whole session to stop, then makes it."""
    for ask, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        if process.poll() is not None:
            return
        try:
            os.killpg(process.pid, ask)
            process.wait(seconds)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def said(out, err):
    """What tells best how a program ended: the last line of its errors, the verdict below a table, how far it came."""
    errors, output = last_line(err), last_line(out)
    return errors if "error" in errors.lower() else output or errors or "it said nothing"


def last_line(file):
    lines = file.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip()[-300:] if lines else ""
