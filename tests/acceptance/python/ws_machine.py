"""A WebSocket echo server (`websockets`, PyPI): the Machine's app."""
import os

from websockets.sync.server import serve

def echo(websocket):
    for message in websocket:
        websocket.send(message)

with serve(echo, "127.0.0.1", int(os.environ["PORT"]), subprotocols=["chat"], max_size=None) as server:
    server.serve_forever()
