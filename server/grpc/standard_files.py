"""The descriptions of gRPC's standard services that this server has: health and reflection.

Written down here because the packages that bring them as generated code want other releases of protobuf than tritonclient does.
Source: grpc/health/v1/health.proto, grpc/reflection/v1/reflection.proto; v1alpha's differs from v1's in its package alone.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_Field = descriptor_pb2.FieldDescriptorProto
_KINDS = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "int32": _Field.TYPE_INT32,
}

HEALTH = "grpc.health.v1"
REFLECTION = "grpc.reflection.v1"
OLD_REFLECTION = "grpc.reflection.v1alpha"

_ASKED = "message_request"
_ANSWERED = "message_response"

Fields = list[tuple[str, int, str, str]]
"""Name, number and type of each field (``*`` before the type: repeated), and the oneof that it belongs to, or ""."""

_REFLECTION_MESSAGES: dict[str, Fields] = {
    "ServerReflectionRequest": [
        ("host", 1, "string", ""),
        ("file_by_filename", 3, "string", _ASKED),
        ("file_containing_symbol", 4, "string", _ASKED),
        ("file_containing_extension", 5, "ExtensionRequest", _ASKED),
        ("all_extension_numbers_of_type", 6, "string", _ASKED),
        ("list_services", 7, "string", _ASKED),
    ],
    "ExtensionRequest": [("containing_type", 1, "string", ""), ("extension_number", 2, "int32", "")],
    "ServerReflectionResponse": [
        ("valid_host", 1, "string", ""),
        ("original_request", 2, "ServerReflectionRequest", ""),
        ("file_descriptor_response", 4, "FileDescriptorResponse", _ANSWERED),
        ("all_extension_numbers_response", 5, "ExtensionNumberResponse", _ANSWERED),
        ("list_services_response", 6, "ListServiceResponse", _ANSWERED),
        ("error_response", 7, "ErrorResponse", _ANSWERED),
    ],
    "FileDescriptorResponse": [("file_descriptor_proto", 1, "*bytes", "")],
    "ExtensionNumberResponse": [("base_type_name", 1, "string", ""), ("extension_number", 2, "*int32", "")],
    "ListServiceResponse": [("service", 1, "*ServiceResponse", "")],
    "ServiceResponse": [("name", 1, "string", "")],
    "ErrorResponse": [("error_code", 1, "int32", ""), ("error_message", 2, "string", "")],
}


def _file(name: str, package: str) -> descriptor_pb2.FileDescriptorProto:
    return descriptor_pb2.FileDescriptorProto(name=name, package=package, syntax="proto3")


def _add_message(file: descriptor_pb2.FileDescriptorProto, name: str, fields: Fields) -> Any:
    message = file.message_type.add(name=name)
    oneofs: list[str] = []
    for field_name, number, kind, oneof in fields:
        repeated = kind.startswith("*")
        kind = kind.lstrip("*")
        field = message.field.add(name=field_name, number=number, label=_Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL)
        if kind in _KINDS:
            field.type = _KINDS[kind]
        else:
            field.type = _Field.TYPE_MESSAGE
            field.type_name = f".{file.package}.{kind}"
        if oneof:
            if oneof not in oneofs:
                oneofs.append(oneof)
                message.oneof_decl.add(name=oneof)
            field.oneof_index = oneofs.index(oneof)
    return message


def _health() -> descriptor_pb2.FileDescriptorProto:
    file = _file("grpc/health/v1/health.proto", HEALTH)
    _add_message(file, "HealthCheckRequest", [("service", 1, "string", "")])
    response = _add_message(file, "HealthCheckResponse", [])
    statuses = response.enum_type.add(name="ServingStatus")
    for number, name in enumerate(("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")):
        statuses.value.add(name=name, number=number)
    kind = f".{HEALTH}.HealthCheckResponse.ServingStatus"
    response.field.add(name="status", number=1, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_ENUM, type_name=kind)
    types = {"input_type": f".{HEALTH}.HealthCheckRequest", "output_type": f".{HEALTH}.HealthCheckResponse"}
    service = file.service.add(name="Health")
    service.method.add(name="Check", **types)
    service.method.add(name="Watch", server_streaming=True, **types)
    return file


def _reflection(package: str) -> descriptor_pb2.FileDescriptorProto:
    file = _file(f"{package.replace('.', '/')}/reflection.proto", package)
    for name, fields in _REFLECTION_MESSAGES.items():
        _add_message(file, name, fields)
    file.service.add(name="ServerReflection").method.add(
        name="ServerReflectionInfo",
        input_type=f".{package}.ServerReflectionRequest",
        output_type=f".{package}.ServerReflectionResponse",
        client_streaming=True,
        server_streaming=True,
    )
    return file


POOL: Any = descriptor_pool.DescriptorPool()
"""The standard files, and only those: another module of the process may have put its own into the default pool."""

for _one in (_health(), _reflection(REFLECTION), _reflection(OLD_REFLECTION)):
    POOL.AddSerializedFile(_one.SerializeToString())


def message_class(name: str) -> Any:
    """The class of a message in one of the standard files, by its full name."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))
