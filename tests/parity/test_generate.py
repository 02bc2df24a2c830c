"""generate and generate_stream: how members become tensors and parameters, what is refused, how responses are told."""

from __future__ import annotations

from typing import Any

import pytest

from ..wire import Connection, compact, exchange, request_bytes
from .case import Case, Difference, check

KINDS = ("generate", "generate_stream")


def ask(model: str, body: Any, kind: str = "generate", path: str = "", headers: dict[str, str] | None = None, method: str = "POST") -> Case:
    """A request to a model; ``path`` replaces what stands between "models" and the end."""
    content = body if isinstance(body, bytes) else compact(body)
    name = f"{kind} {path or model} {content[:60].decode('latin-1')} {headers or ''} {method}"
    return Case(name.strip(), method, f"/v2/models/{path or model}/{kind}", content, headers or {})


SEEN = (
    *("", "{}", "[]", "5", '"x"', "null", '{"a":1', '{"INT32":1}x', '{"INT32":1}\0x', '\ufeff{"INT32":1}', '{"a" :1 , "b":2}\n'),
    *(
        '{"INT32":5}',
        '{"INT32":[1,2,3]}',
        '{"INT32":[]}',
        '{"INT32":[[1,2],[3]]}',
        '{"INT32":[[1]]}',
        '{"INT32":[[],[1]]}',
        '{"INT32":[[]]}',
    ),
    *(
        '{"INT32":[[1],[2]]}',
        '{"INT32":[[[1]],2]}',
        '{"INT32":[[1,2]]}',
        '{"INT32":{}}',
        '{"INT32":{"a":1}}',
        '{"INT32":null}',
        '{"INT32":"5"}',
    ),
    *('{"INT32":5.0}', '{"INT32":true}', '{"INT32":[1,true]}', '{"INT32":[1,"2"]}', '{"INT32":[1,null]}', '{"INT32":3000000000}'),
    *('{"INT32":-3000000000}', '{"INT32":99999999999999999999}', '{"INT64":9223372036854775807}', '{"INT64":9223372036854775808}'),
    *('{"UINT64":18446744073709551615}', '{"UINT64":-1}', '{"UINT64":1.0}', '{"UINT32":4294967296}', '{"UINT32":18446744073709551616}'),
    *('{"UINT8":256}', '{"UINT8":-1}', '{"INT8":200}', '{"INT8":-129}', '{"UINT16":65537}', '{"INT16":40000}'),
    *('{"BOOL":true}', '{"BOOL":1}', '{"BOOL":"true"}', '{"BOOL":[true,false]}', '{"BOOL":null}'),
    *('{"FP32":1}', '{"FP32":1.5}', '{"FP32":"1.5"}', '{"FP32":true}', '{"FP32":1e300}', '{"FP32":NaN}', '{"FP32":[Infinity,-Infinity]}'),
    *('{"FP32":0.1}', '{"FP32":null}', '{"FP64":1e300}', '{"FP64":18446744073709551615}', '{"FP64":1e999}'),
    *('{"FP16":1}', '{"FP16":[1.5,2]}', '{"FP16":[]}', '{"BF16":1}'),
    *(
        '{"BYTES":"a"}',
        '{"BYTES":["a","bc",""]}',
        '{"BYTES":5}',
        '{"BYTES":["a",5]}',
        '{"BYTES":""}',
        '{"BYTES":[]}',
        '{"BYTES":"\\u0000x"}',
    ),
    *('{"BYTES":null}', '{"BYTES":[["a"]]}', '{"BYTES":[["a","b"]]}', '{"BYTES":[["a"],["b"]]}', '{"BYTES":[[],["b"]]}', '{"BYTES":{}}'),
    *('{"BYTES":"ä"}', '{"BYTES":"\\ud83d\\ude00"}', '{"BYTES":"\\ud83d"}', '{"BYTES":true}'),
    *(
        '{"ONE":5}',
        '{"ONE":[5]}',
        '{"ONE":[5,6]}',
        '{"ONE":[]}',
        '{"TWO":5}',
        '{"TWO":[5,6]}',
        '{"TWO":[5,6,7]}',
        '{"TWO":["a"]}',
        '{"TWO":["a","b"]}',
    ),
    *('{"FIXED":[1,2,3,4,5,6]}', '{"FIXED":[1,2,3]}', '{"FIXED":[[1,2,3],[4,5,6]]}', '{"FIXED":"x"}', '{"WIDE":[1,2,3,4]}', '{"WIDE":[]}'),
    *('{"LEFT":[1,2,3,4]}', '{"LEFT":[1,2,3]}', '{"RIGHT":[1,2,3,4]}', '{"THREE":[1,2,3,4]}', '{"THREE":[1,2,3]}', '{"THREE":[]}'),
    *('{"TEXTS":["a","b","c","d"]}', '{"TEXTS":["a","b","c"]}', '{"TEXTS":[]}', '{"TEXTS":[["a","b","c"],["d"]]}', '{"FLAT":[1,2,3,4]}'),
    *('{"a":1}', '{"a":"x"}', '{"a":true}', '{"a":1.5}', '{"a":null}', '{"a":[1]}', '{"a":{}}', '{"a":-1}', '{"a":9223372036854775807}'),
    *('{"a":9223372036854775808}', '{"a":99999999999999999999}', '{"a":NaN}', '{"a":Infinity}', '{"a":0.1}', '{"":1}', '{"a":"x\\u0000y"}'),
    *('{"a":1,"a":2}', '{"INT32":1,"INT32":2}', '{"INT32":1,"INT32":2,"a":{}}', '{"id":"abc"}', '{"id":""}', '{"id":5}', '{"id":null}'),
    *('{"id":"x","id":"y"}', '{"id":"a\\u0000b"}', '{"INT32":"x","id":5}', '{"id":5,"parameters":3}', '{"ID":"x"}'),
    *('{"parameters":{"b":1,"INT32":7}}', '{"parameters":{}}', '{"parameters":5}', '{"parameters":[]}', '{"parameters":null}'),
    *('{"parameters":{"parameters":{"b":1}}}', '{"parameters":{"parameters":5}}', '{"parameters":{"id":"zz"}}', '{"parameters":{"id":5}}'),
    *(
        '{"parameters":{"a":1},"a":2}',
        '{"a":2,"parameters":{"a":1}}',
        '{"INT32":1,"parameters":{"INT32":2}}',
        '{"parameters":{"INT32":2},"INT32":1}',
    ),
    *('{"parameters":{"a":{}}}', '{"parameters":{"INT32":"x"}}', '{"parameters":{"ONE":[1,2]}}', '{"parameters":{"INT32":1,"INT32":2}}'),
    *('{"parameters":{"b":1},"parameters":{"c":1}}', '{"parameters":{"FP16":1}}', '{"parameters":{"BYTES":[["a","b"]]}}'),
    *(
        '{"inputs":[{"name":"INT32"}]}',
        '{"sequence_id":5,"sequence_start":true,"priority":1,"timeout":-1}',
        '{"triton_x":1,"binary_data_output":true}',
    ),
    *(
        '{"a":{},"INT32":"x"}',
        '{"INT32":"x","a":{}}',
        '{"ONE":[1,2],"INT32":"x"}',
        '{"INT32":"x","ONE":[1,2]}',
        '{"parameters":5,"INT32":"x"}',
    ),
    *('{"a\\u0000b":1}', '{"a":1,"a\\u0000b":2}', '{"INT32\\u0000x":5}', '{"INT32":3,"INT32\\u0000x":5}', '{"parameters\\u0000x":5}'),
    *('{"INT32":1,"z":1,"b":1,"A":1,"_":1}', '{"INT32":' + "[" * 99 + "1" + "]" * 99 + "}"),
)
"""Bodies for a model that says what it was given."""

LONG = (
    '{"BYTES":"' + "x" * 70_000 + '","a":1,"id":"q"}',
    '{"INT32":[' + ",".join(map(str, range(30_000))) + '],"BYTES":[' + ",".join(['"é"'] * 3) + "]}",
    '{\n "THREE": [\n  ' + ",\n  ".join(map(str, range(20_000))) + '\n ],\n "b": true\n}\n',
    '{"LEFT":[' + ",".join(["1"] * 40_001) + "]}",
    '{"UINT8":[' + ",".join(["1"] * 40_000) + ",-1]}",
    '{"parameters":{"BYTES":[' + ",".join(['"text"'] * 20_000) + "]}}",
    '{"INT32":[' + ",".join(["[1]"] * 30_000) + "]}",
)
"""Bodies above 64 KiB."""

SCRIPTS = (
    *(["text:a"], [], ["last:a"], ["text:a", "last:b"], ["none"], ["bare"], ["text:a", "bare"], ["none", "none"], ["none", "text:a"]),
    *(["error:oh"], ["error:oh", "text:a"], ["text:a", "error:oh"], ["text:a", "error:oh", "text:b"], ["error:one", "error:two"]),
    *(["raise:boom"], ["text:a", "raise:boom"], ["name:FP16:1"], ["text:a", "name:FP16:1", "text:b"]),
    *(["name:FP32:0.1,nan,inf,1e20"], ["name:FP32:0.1"], ["name:BOOL:1"], ["name:BOOL:1,0"], ["name:INT32:"], ["name:FP64:1e300"]),
    *(["name:UINT64:18446744073709551615"], ["shape:2,3"], ["shape:1,1"], ["shape:0,3"], ["shape:200,200"], ["two"]),
    *(['text:ä"\\\n\x7f/'], [f"text:{number}" for number in range(100)]),
)
"""What a decoupled model is told to answer."""

UNARY = ("hi", ["a", "b"], [], "error:why", "raise:why", "nothing")

BATCHED = (
    *(
        {"A": [1, 2]},
        {"A": [1, 2, 3, 4]},
        {"A": 1},
        {"A": []},
        {"A": [1, 2], "B": 1.5},
        {"A": [1, 2], "B": [1, 2, 3]},
        {"A": [1, 2], "B": []},
    ),
    *({"A": [[1, 2], [3, 4]]}, {"A": list(range(10))}, {"B": 1}, {}, {"A": [1, 2], "SCALAR": 4}, {"A": [1, 2], "SCALAR": [4, 5]}),
)

NAMED = (
    *(("names", body) for body in ({"id": "x"}, {"id": ["x", "y"]}, {"id": 5}, {}, {"parameters": {"id": "n"}})),
    *(("names", body) for body in ({"id": "q", "parameters": {"id": "n"}}, '{"id":"x","id":"y"}')),
    *(("parameters", body) for body in ({"parameters": 5}, {"parameters": {}}, {"parameters": {"parameters": 5}}, {"a": 1})),
)

HELLO = {"TEXT_IN": "hello"}
UNARY_MODEL = "generate_unary"

CASES = [
    *(ask("generate_seen", body) for body in SEEN),
    *(ask("generate_seen", body.encode()) for body in LONG),
    ask("generate_seen", b'{"BYTES":"\xff\xfe"}'),
    *(ask("generate_script", {"SCRIPT": script}, kind) for script in SCRIPTS for kind in KINDS),
    *(ask("generate_script", {"SCRIPT": ["text:a", "error:b"], "id": "I-1"}, kind) for kind in KINDS),
    *(ask("generate_script", {"x": 1}, kind) for kind in KINDS),
    *(ask(UNARY_MODEL, {"TEXT_IN": text}, kind) for text in UNARY for kind in KINDS),
    ask(UNARY_MODEL, {"TEXT_IN": "error:why", "id": "q"}),
    *(ask("generate_batched", body) for body in BATCHED),
    *(ask(f"generate_{model}", body) for model, body in NAMED),
    *(ask("none", HELLO, kind) for kind in KINDS),
    *(ask("", HELLO, kind, f"{UNARY_MODEL}/versions/{version}") for kind in KINDS for version in ("1", "01", "2", "x", "9" * 20)),
    *(ask(UNARY_MODEL, HELLO, kind, headers={"Content-Encoding": name}) for kind in KINDS for name in ("gzip", "identity", "br", "")),
    ask("none", HELLO, headers={"Content-Encoding": "gzip"}),
    ask(UNARY_MODEL, "{", headers={"Content-Encoding": "gzip"}),
    *(ask(UNARY_MODEL, HELLO, kind, headers={"Accept-Encoding": "gzip"}) for kind in KINDS),
    ask(UNARY_MODEL, HELLO, headers={"Inference-Header-Content-Length": "5"}),
    *(ask(UNARY_MODEL, b"", kind, method=method) for kind in KINDS for method in ("GET", "PUT", "DELETE")),
    *(ask(UNARY_MODEL, HELLO, f"{kind}{more}") for kind in KINDS for more in ("/", "?x=1", "s")),
]

DIFFERENCES: dict[str, Difference] = {}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_replies(case: Case, python_oracle: int, python_farm: int) -> None:
    check(case, python_oracle, python_farm, DIFFERENCES)


@pytest.mark.parametrize("depth", [100, 200])
def test_depth_is_limited(depth: int, python_farm: int) -> None:
    """Release 24.10 takes any depth; here it ends where it does for inference."""
    for body in ('{"INT32":' + "[" * (depth + 1) + "1" + "]" * (depth + 1) + "}", '{"zz":' + "[" * (depth + 2) + "]" * (depth + 2) + "}"):
        reply = exchange(python_farm, "POST", "/v2/models/generate_seen/generate", body)
        assert reply.status == 400 and "JSON nesting depth exceeds maximum allowed limit (100)" in reply.error


def test_the_head_comes_with_the_first_response(python_oracle: int, python_farm: int) -> None:
    """And each event when it is sent: what comes first does not wait for what comes a second later."""
    body = compact({"SCRIPT": ["text:a", "pause:1", "text:b"]})
    for port in (python_oracle, python_farm):
        with Connection(port) as connection:
            connection.send(request_bytes("POST", "/v2/models/generate_script/generate_stream", body))
            connection.wait_for(b'data: {"TEXT":"a"')
            assert b'"TEXT":"b"' not in connection.received
            assert connection.receive().body.count(b"data: ") == 2


def test_a_client_that_goes_cancels(python_oracle: int, python_farm: int) -> None:
    """The model sees it, and another client is answered."""
    body = compact({"SCRIPT": ["text:a", "wait"]})
    for port in (python_oracle, python_farm):
        with Connection(port) as connection:
            connection.send(request_bytes("POST", "/v2/models/generate_script/generate_stream", body))
            connection.wait_for(b'data: {"TEXT":"a"')
            connection.abort()
        # the model has one instance, which the first request would hold for 20 s
        reply = exchange(port, "POST", "/v2/models/generate_script/generate", {"SCRIPT": ["text:b"]})
        assert reply.json["TEXT"] == "b"
