"""A gRPC server without generated code: messages are bytes. The Machine's app."""
import os
from concurrent import futures

import grpc

def unary(request, context):
    context.set_trailing_metadata((("region", os.environ["FLY_REGION"]),))
    if request == b"fail":
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked: ä")
    return b"got " + request

def count(request, context):
    for number in range(int(request)):
        yield str(number).encode()

def total(requests, context):
    return str(sum(int(request) for request in requests)).encode()

def chat(requests, context):
    for request in requests:
        yield b"echo " + request

METHODS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "Total": grpc.stream_unary_rpc_method_handler(total),
    "Chat": grpc.stream_stream_rpc_method_handler(chat),
}
server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("skein.Test", METHODS),))
server.add_insecure_port("127.0.0.1:" + os.environ["PORT"])
server.start()
server.wait_for_termination()
