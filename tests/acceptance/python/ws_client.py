"""Speaks with ws_machine.py through an edge. With `wait` it then stays until the connection is
closed, and prints the code."""
import os
import sys

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

address, wait = sys.argv[1], "wait" in sys.argv[2:]
with connect(f"ws://{address}/talk", subprotocols=["chat"], max_size=None) as websocket:
    assert websocket.subprotocol == "chat", websocket.subprotocol
    for size in [0, 1, 125, 126, 65535, 65536, 3_000_000]:
        for message in [os.urandom(size), "ä" * size]:
            websocket.send(message)
            assert websocket.recv(timeout=120) == message, size
    # One message in many frames, with a ping between.
    websocket.send(str(number) for number in range(100))
    assert websocket.recv(timeout=120) == "".join(str(number) for number in range(100))
    assert websocket.ping().wait(timeout=120)
    print("talked", flush=True)
    if wait:
        try:
            websocket.recv(timeout=120)
            raise AssertionError("nobody asked for a message")
        except ConnectionClosed as closed:
            print("closed", closed.rcvd and closed.rcvd.code, flush=True)
