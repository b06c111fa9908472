"""A program as a backend: started, asked, timed, and started anew when it dies.

Whatever a program does, each request comes to an end: an answer, or `Failed` with what happened.  Two threads read
what it writes and one writes what it reads, so that no pipe that is full, empty or closed stops the talk.
"""

import os
import queue
import shlex
import signal
import subprocess
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from threading import Thread
from time import monotonic
from types import TracebackType
from typing import IO, cast

from ..errors import FileError, complaint
from .operations import Request
from .protocol import HELLO, MOST_BYTES, Answer, read_hello, read_reply, request_line, shown
from .verify import Failed

__all__ = ["Program"]

IN_A_ROW, IN_ALL = 5, 100
"""So many failures, one after the other or altogether, and the program is not started again."""

PATIENCE = 2.0
"""Seconds for a program to leave when its input ends."""


class _LostError(Exception):
    """The program is not to be talked to any more; why."""


# ---- one life of a program ------------------------------------------------------------------------------------


class _Life:
    """A process and its threads."""

    def __init__(self, command: Sequence[str]) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        self.stdin, self.stdout, self.stderr = (
            cast(IO[bytes], f) for f in (self.process.stdin, self.process.stdout, self.process.stderr)
        )
        self.lines: queue.Queue[bytes] = queue.Queue(4)
        self.said: deque[bytes] = deque(maxlen=1)  # the last line on standard error
        self.threads = [Thread(target=f, daemon=True) for f in (self._read, self._read_errors)]
        for thread in self.threads:
            thread.start()

    def _read(self) -> None:
        line = b"\n"
        while line.endswith(b"\n"):
            line = self.stdout.readline(MOST_BYTES + 1)
            self.lines.put(line)

    def _read_errors(self) -> None:
        while line := self.stderr.readline(1 << 16):
            if line.strip():
                self.said.append(line.strip())

    def _write(self, line: bytes) -> None:
        with suppress(OSError, ValueError):  # it ended: reading tells
            self.stdin.write(line)
            self.stdin.flush()

    def ask(self, line: bytes, timeout: float) -> bytes:
        """The next line that the program writes."""
        writer = Thread(target=self._write, args=(line,), daemon=True)
        self.threads = [t for t in self.threads if t.is_alive()] + [writer]
        writer.start()
        try:
            reply = self.lines.get(timeout=timeout)
        except queue.Empty:
            raise _LostError(f"no whole line within {timeout:g} s (does it flush its output after each?)") from None
        if len(reply) > MOST_BYTES:
            raise _LostError(f"more than {MOST_BYTES} bytes without the end of a line")
        if not reply.endswith(b"\n"):
            raise _LostError(self._end(reply))
        return reply

    def _end(self, rest: bytes) -> str:
        """How it ended, and its last words."""
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            end = "it closed its output"
        else:
            end = f"it ended with status {code}" if code >= 0 else f"it died of {signal.Signals(-code).name}"
        for thread in self.threads:
            thread.join(0.2)
        last = f"; it said: {shown(self.said[-1])}" if self.said else ""
        return end + (f" amid the line {shown(rest)}" if rest else "") + last

    def close(self, kill: bool) -> None:
        """Let it end, or end it and all that it started; then threads and pipes."""
        if not kill:
            self._close(self.stdin)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE)
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL) if hasattr(os, "killpg") else self.process.kill()
            self.process.wait()
        end = monotonic() + PATIENCE
        while alive := any(thread.is_alive() for thread in self.threads):
            with suppress(queue.Empty):
                self.lines.get(timeout=0.01)
            if monotonic() > end:  # a child of its own lives on and holds a pipe
                break
        for pipe in () if alive else (self.stdin, self.stdout, self.stderr):
            self._close(pipe)

    @staticmethod
    def _close(pipe: IO[bytes]) -> None:
        with suppress(OSError, ValueError):  # what was not written yet has no reader
            pipe.close()


# ---- all of them ----------------------------------------------------------------------------------------------


class Program:
    """A program that speaks the protocol, as a backend for `verify`; a context manager.

    command: words, or a line that is split as a shell would.  timeout: seconds for its hello and for each answer.

    Called with a `Request`, it gives outputs by name, `Declined` or `Failed`.  After a crash, a time-out, or a line
    that does not answer the request, the program is started anew for the next request; after 5 such failures in a
    row, or 100, no more, and what is left fails unasked.

    Raises FileError, on entering, for a program that cannot be started.

    >>> from .packs import level_one
    >>> from .verify import verify
    >>> with Program("cat") as backend:  # says what it hears: hello, and then no answers
    ...     report = verify(backend, level_one(), "onnx@21", ops=["dequantize"])
    >>> report.count("failed") == len(report.verdicts)
    True
    """

    def __init__(self, command: str | Sequence[str], *, timeout: float = 30.0) -> None:
        self.command = shlex.split(command) if isinstance(command, str) else list(command)
        self.timeout = timeout
        self._life: _Life | None = None
        self._asked = self._failed = self._in_a_row = 0
        self._why = ""

    def __enter__(self) -> "Program":
        try:
            self._life = _Life(self.command)
        except (OSError, ValueError, IndexError) as error:
            got = getattr(error, "strerror", None) or str(error)
            raise FileError(complaint(got, "a program that starts", f"command {shlex.join(self.command)!r}")) from None
        self._greeted = False
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end(kill=kind is not None)

    def _end(self, kill: bool) -> None:
        if self._life is not None:
            self._life.close(kill)
            self._life = None

    def __call__(self, request: Request) -> Answer:
        if self._in_a_row >= IN_A_ROW or self._failed >= IN_ALL:
            return Failed(f"given up after {self._failed} failures, the last: {self._why}")
        try:
            answer = self._ask(request)
        except (_LostError, FileError) as error:
            self._end(kill=True)
            self._failed, self._in_a_row, self._why = self._failed + 1, self._in_a_row + 1, str(error)
            return Failed(str(error))
        self._in_a_row = 0
        return answer

    def _ask(self, request: Request) -> Answer:
        if self._life is None:
            self.__enter__()
        life = cast(_Life, self._life)
        if not self._greeted:
            read_hello(life.ask(HELLO, self.timeout), "the program's hello")
            self._greeted = True
        self._asked += 1
        name = str(self._asked)
        got, answer = read_reply(life.ask(request_line(name, request), self.timeout), "the program's answer")
        if got != name:
            raise _LostError(complaint(f"an answer to {got[:40]!r}", f"to {name!r}", "the program's answer"))
        return answer
