"""A process that was told to stop and hangs, also where its event loop hears no signal any more."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

_HANGS = """
import logging, signal, sys, time
import uvloop
from stream.deadline import Deadline

logging.basicConfig()
loop = uvloop.new_event_loop()
deadline = Deadline(0.3)
stopped = []

def begin():
    loop.add_signal_handler(signal.SIGTERM, stop)
    deadline.listen()
    print("up", flush=True)
    if sys.argv[1] == "hung":
        time.sleep(60)

def stop():
    stopped.append(1)
    if sys.argv[1] == "meets":
        deadline.met()
        loop.call_later(1.0, loop.stop)

loop.call_soon(begin)
loop.run_forever()
sys.exit(0 if stopped else 7)
"""


@pytest.mark.parametrize(("case", "code"), [("hung", 1), ("idle", 1), ("meets", 0)])
def test_the_process_ends_at_the_deadline_unless_its_cycles_are_done(case: str, code: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", _HANGS, case], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == code
        assert (b"did not end within" in process.stderr.read()) == (code == 1)
