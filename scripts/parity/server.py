"""A running `phalanx serve`, and requests to it."""
import os
import pathlib
import queue
import subprocess
import threading
import time

import requests

START_SECONDS = 120
ANSWER_SECONDS = 120


class ServerError(Exception):
    """The server did not start, or did not answer as it should."""


class Server:
    """One process, ended when the `with` block ends. Its log goes to `log`."""

    def __init__(self, command, log, gpus=None):
        environment = dict(os.environ)
        if gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
        self.log = pathlib.Path(log)
        started = time.monotonic()
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", env=environment)
        self.lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.url = self._await_address(started + START_SECONDS)
        self.start_seconds = time.monotonic() - started

    def _read(self):
        with self.log.open("w") as log:
            for line in self.process.stderr:
                log.write(line)
                log.flush()
                self.lines.put(line)
        self.lines.put(None)

    def _await_address(self, until):
        last = ""
        while True:
            try:
                line = self.lines.get(timeout=max(0.1, until - time.monotonic()))
            except queue.Empty:
                self.end()
                raise ServerError(f"not ready after {START_SECONDS} s; {last}") from None
            if line is None:
                raise ServerError(f"ended with {self.process.wait()}: {last}")
            if " at http://" in line:
                return "http://" + line.split(" at http://")[1].split()[0].strip('"},')
            last = line.strip()[-300:] or last

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        """Asks it to stop, then makes it."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def post(self, path, body):
        """The answer's JSON."""
        try:
            response = requests.post(self.url + path, json=body, timeout=ANSWER_SECONDS)
            answer = response.json()
        except (requests.RequestException, ValueError) as error:
            raise ServerError(f"{path}: {error}") from error
        if response.status_code != 200:
            raise ServerError(f"{path}: {response.status_code} {response.text[:300]}")
        return answer
