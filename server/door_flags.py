"""The flags of the doors: HTTP, gRPC, and the platforms' own."""

from __future__ import annotations

from collections.abc import Iterator

from . import option_values as read
from .flag import BOOLEAN, INTEGER, NOTHING, RESTRICTION, STRING, Group


def door_groups() -> Iterator[Group]:
    """The groups of the usage text that say how clients reach the server."""
    yield _http()
    yield _grpc()
    yield from _platforms()


def _http() -> Group:
    g = Group("HTTP", built=True)
    g.add("allow-http", BOOLEAN, read.boolean, True, "Serve HTTP?")
    g.add("http-address", STRING, read.string, "0.0.0.0", "The address to serve HTTP on.")
    g.add("http-port", INTEGER, read.integer, 8000, "The port to serve HTTP on.")
    g.add(
        "reuse-http-port",
        BOOLEAN,
        read.boolean,
        False,
        "Share the HTTP port with other servers that set this too? The system then spreads connections over them, so they "
        "should serve the same models.",
    )
    g.add(
        "http-header-forward-pattern",
        STRING,
        read.string,
        "",
        "Hand request headers whose whole name matches this regular expression to the models as request parameters.",
    )
    g.add(
        "http-thread-count",
        INTEGER,
        read.integer,
        8,
        "Accepted for tritonserver's sake: tensorfarm serves HTTP from one event loop and needs no threads for it.",
    )
    g.add(
        "http-max-input-size",
        INTEGER,
        read.positive("http-max-input-size", read.wide_integer),
        64 << 20,
        "The most bytes of the JSON part of an inference request, of each tensor in it, of a raw request, and of a body once it is "
        "decompressed. Tensors in binary are not bounded by it.",
    )
    g.add("http-use-ssl", BOOLEAN, read.boolean, False, "Serve HTTP over TLS (1.2 and 1.3), and HTTP/2 where the client asks for it?")
    g.add(
        "http-use-ssl-mutual",
        BOOLEAN,
        read.boolean,
        False,
        "Serve HTTP over TLS, and only to clients with a certificate that leads to one of --http-root-cert?",
    )
    g.add(
        "http-server-cert",
        STRING,
        read.string,
        "",
        "The PEM file with the server's certificate, and those between it and its root, for HTTP over TLS. This file, the key's and "
        "--http-root-cert are read again when they change.",
    )
    g.add("http-server-key", STRING, read.string, "", "The PEM file with the server's private key, without a pass phrase.")
    g.add("http-root-cert", STRING, read.string, "", "The PEM file with the certificates that clients' certificates must lead to.")
    g.add(
        "http-restricted-api",
        RESTRICTION,
        read.restricted("http-restricted-api", "api"),
        NOTHING,
        "APIS:HEADER=VALUE: answer these comma-separated APIs only to requests that carry this header with this value. May be "
        f"repeated. APIs: {', '.join(read.RESTRICTABLE_APIS)}.",
    )
    return g


def _grpc() -> Group:
    g = Group("GRPC", built=True)
    g.add("allow-grpc", BOOLEAN, read.boolean, True, "Serve gRPC?", quiet=(False,))
    g.add("grpc-address", STRING, read.string, "0.0.0.0", "The address to serve gRPC on.")
    g.add("grpc-port", INTEGER, read.integer, 8001, "The port to serve gRPC on.")
    g.add("reuse-grpc-port", BOOLEAN, read.boolean, False, "As --reuse-http-port, for the gRPC port.", quiet=(False,))
    g.add(
        "grpc-header-forward-pattern",
        STRING,
        read.string,
        "",
        "As --http-header-forward-pattern, for gRPC metadata.",
    )
    g.add(
        "grpc-infer-thread-count",
        INTEGER,
        read.between(2, 128, "invalid argument for --grpc_infer_thread_count. Must be in the range 2 to 128."),
        2,
        "Accepted for tritonserver's sake, 2 to 128: tensorfarm serves gRPC from one event loop and needs no threads for it.",
    )
    g.add(
        "grpc-infer-allocation-pool-size",
        INTEGER,
        read.integer,
        8,
        "Accepted for tritonserver's sake: there are no such objects to keep.",
    )
    g.add(
        "grpc-max-response-pool-size",
        INTEGER,
        read.positive("grpc-max-response-pool-size", read.integer),
        (1 << 31) - 1,
        "How many responses of one stream may wait for its client; a model that sends more is held up until the client has taken some.",
    )
    g.add("grpc-use-ssl", BOOLEAN, read.boolean, False, "Serve gRPC over TLS?", quiet=(False,))
    g.add(
        "grpc-use-ssl-mutual",
        BOOLEAN,
        read.boolean,
        False,
        "Serve gRPC over TLS and ask clients for certificates too?",
        quiet=(False,),
    )
    g.add("grpc-server-cert", STRING, read.string, "", "The PEM file with the server's certificate, for gRPC over TLS.")
    g.add("grpc-server-key", STRING, read.string, "", "The PEM file with the server's private key, for gRPC over TLS.")
    g.add("grpc-root-cert", STRING, read.string, "", "The PEM file with the certificates that clients' certificates must lead to.")
    g.add(
        "grpc-infer-response-compression-level",
        STRING,
        read.choice(("none", "low", "medium", "high"), "invalid argument for --grpc_infer_response_compression_level"),
        "none",
        "Compress gRPC responses for clients that understand gzip or deflate? none: no; low, medium and high: yes, all alike.",
    )
    g.add("grpc-keepalive-time", INTEGER, read.integer, 7_200_000, "Milliseconds between keep-alive pings.")
    g.add(
        "grpc-keepalive-timeout",
        INTEGER,
        read.integer,
        20_000,
        "Milliseconds to wait for the answer to a keep-alive ping before the connection is closed.",
    )
    g.add(
        "grpc-keepalive-permit-without-calls",
        BOOLEAN,
        read.boolean,
        False,
        "Send keep-alive pings while no call is running, too?",
    )
    g.add(
        "grpc-http2-max-pings-without-data",
        INTEGER,
        read.integer,
        2,
        "How many pings may be sent with no data between them; 0: any number.",
    )
    g.add(
        "grpc-http2-min-recv-ping-interval-without-data",
        INTEGER,
        read.integer,
        300_000,
        "A client's ping that follows another sooner than this many milliseconds, with no data between them, counts as a bad one.",
    )
    g.add(
        "grpc-http2-max-ping-strikes",
        INTEGER,
        read.integer,
        2,
        "How many bad pings a connection survives; 0: any number.",
    )
    g.add("grpc-max-connection-age", INTEGER, read.integer, 0, "Milliseconds a connection may live. 0: for ever.")
    g.add(
        "grpc-max-connection-age-grace",
        INTEGER,
        read.integer,
        0,
        "Milliseconds that calls may still run on a connection past its age. 0: for ever.",
    )
    g.add(
        "grpc-restricted-protocol",
        RESTRICTION,
        read.restricted("grpc-restricted-protocol", "protocol"),
        NOTHING,
        "As --http-restricted-api, for gRPC; the metadata key asked for is triton-grpc-protocol-KEY.",
    )
    return g


def _platforms() -> Iterator[Group]:
    g = Group("SageMaker", built=False)
    g.add("allow-sagemaker", BOOLEAN, read.boolean, False, "Serve SageMaker's HTTP requests?", quiet=(False,))
    g.add("sagemaker-port", INTEGER, read.integer, 8080, "The port to serve them on.")
    g.add(
        "sagemaker-safe-port-range",
        "<<integer>-<integer>>",
        read.port_range,
        None,
        "The ports that other endpoints may use while SageMaker's is served.",
    )
    g.add("sagemaker-thread-count", INTEGER, read.integer, 8, "Accepted for tritonserver's sake.")
    yield g

    g = Group("Vertex", built=False)
    g.add(
        "allow-vertex-ai",
        BOOLEAN,
        read.boolean,
        None,
        "Serve Vertex AI's HTTP requests? Default: true if the environment has AIP_MODE=PREDICTION, else false.",
        quiet=(False,),
    )
    g.add("vertex-ai-port", INTEGER, read.integer, None, "The port to serve them on. Default: AIP_HTTP_PORT of the environment, or 8080.")
    g.add("vertex-ai-thread-count", INTEGER, read.integer, 8, "Accepted for tritonserver's sake.")
    g.add("vertex-ai-default-model", STRING, read.string, "", "The model that requests which name none are for.")
    yield g
