"""Calls grpc_machine.py through an edge; says what went wrong by failing."""
import queue
import sys

import grpc

channel = grpc.insecure_channel(sys.argv[1])
region = sys.argv[2]

unary = channel.unary_unary("/skein.Test/Unary")
for number in range(50):
    message, call = unary.with_call(str(number).encode(), timeout=60, wait_for_ready=True)
    assert message == b"got " + str(number).encode(), message
    assert dict(call.trailing_metadata())["region"] == region, call.trailing_metadata()

try:
    unary(b"fail", timeout=60)
    raise AssertionError("it should have failed")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
    assert error.details() == "as asked: ä", error

counted = [int(message) for message in channel.unary_stream("/skein.Test/Count")(b"1000", timeout=60)]
assert counted == list(range(1000)), counted[:10]

numbers = (str(number).encode() for number in range(1000))
assert channel.stream_unary("/skein.Test/Total")(numbers, timeout=60) == b"499500"

# Each message waits for the answer to the one before: nothing on the way may hold one back.
asked = queue.Queue()
answers = channel.stream_stream("/skein.Test/Chat")(iter(asked.get, None), timeout=60)
for number in range(100):
    asked.put(str(number).encode())
    assert next(answers) == b"echo " + str(number).encode()
asked.put(None)
assert list(answers) == []
print("grpc ok", grpc.__version__)
