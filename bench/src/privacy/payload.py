"""Programs of a person in the lab: a chat and a telephone call, which speak while told to.

    payload.py chat|voice ADDRESS PORT SEED

A line "on" or "off" on standard input begins or ends the speaking; its end ends the program. Both sides are heard:
the service answers every message.
"""

import os
import random
import select
import socket
import sys
import time

CHAT_PAUSE = 0.03  # mean seconds between bursts of messages
CALL_PERIOD = 0.02  # 50 packets a second
CALL_BYTES = 160


def chat(address):
    link = socket.create_connection(address, timeout=10)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setblocking(False)

    def speak():
        for _ in range(random.randint(1, 3)):
            link.send(bytes(random.randint(20, 400)))
        return random.expovariate(1 / CHAT_PAUSE)

    return link, speak


def voice(address):
    link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    link.connect(address)
    link.setblocking(False)

    def speak():
        link.send(bytes(CALL_BYTES))
        return CALL_PERIOD

    return link, speak


def main():
    kind, host, port, seed = sys.argv[1:]
    random.seed(int(seed))
    link, speak = {"chat": chat, "voice": voice}[kind]((host, int(port)))
    print("ready", flush=True)
    due = None
    while True:
        now = time.monotonic()
        wait = None if due is None else max(0.0, due - now)
        readable, _, _ = select.select([link, sys.stdin], [], [], wait)
        if sys.stdin in readable:
            # Not by line: of two that came together, one would wait in a buffer that select does not see.
            told = os.read(sys.stdin.fileno(), 4096)
            if not told:
                return
            # A line's end may come by itself.
            for word in told.split():
                due = time.monotonic() if word == b"on" else None
        if link in readable:
            try:
                if not link.recv(65536) and kind == "chat":
                    sys.exit("the service closed the connection")
            except BlockingIOError:
                pass
        now = time.monotonic()
        if due is not None and now >= due:
            try:
                due += speak()
            except BlockingIOError:
                due += CALL_PERIOD
            # What could not be said in time is not said twice as fast afterwards.
            due = max(due, now)


main()
