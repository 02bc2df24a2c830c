"""The server's settings: one typed attribute per command-line flag, as `command_line.parse` leaves them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..workers.contract.status import invalid
from .option_values import Resource, Setting


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for, with every default filled in.

    Deprecated flags have no attribute: they are folded into the flags that replace them. Byte counts are in bytes,
    ports are numbers, ``…_ms`` are milliseconds and ``…_secs`` seconds.
    """

    id: str
    exit_timeout_secs: int
    busy_poll_us: int | None
    """None: for as long as suits the number of cores."""

    front_ends: int
    """How many processes of their own have the doors; 0: the server's own process has them."""

    max_inflight_requests: int
    """0: no limit, as for the two that follow."""
    max_inflight_byte_size: int | None
    """None: as many as the arena for request bodies may ever hold."""
    max_inflight_requests_per_model: Mapping[str, int]
    """Model name to its limit; "" is every model that is not named."""

    log_verbose: int
    log_info: bool
    log_warning: bool
    log_error: bool
    log_format: str
    """``default`` or ``ISO8601``."""
    log_file: str

    model_repository: tuple[str, ...]
    """Sorted, each path once; empty where none was given."""
    exit_on_error: bool
    disable_auto_complete_config: bool
    strict_readiness: bool
    model_control_mode: str
    """``none``, ``poll``, ``explicit`` or ``lazy``."""
    repository_poll_secs: int
    """0 unless the control mode is ``poll``."""
    repository_settle_ms: int
    lazy_model_count: int
    """0: no limit; as for ``lazy_memory_byte_size``."""
    lazy_memory_byte_size: int
    load_model: tuple[str, ...]
    """Sorted, each name once."""
    model_config_name: str
    model_load_thread_count: int
    """At least 1."""
    model_load_retry_count: int
    model_namespacing: bool
    enable_peer_access: bool

    allow_http: bool
    http_address: str
    http_port: int
    reuse_http_port: bool
    http_header_forward_pattern: str
    http_thread_count: int
    http_max_input_size: int
    http_use_ssl: bool
    """True also where only --http-use-ssl-mutual was given."""
    http_use_ssl_mutual: bool
    http_server_cert: str
    http_server_key: str
    http_root_cert: str
    http_restricted_api: Mapping[str, tuple[str, str]]
    """API category to the (header name, value) a request must carry."""

    allow_grpc: bool
    grpc_address: str
    grpc_port: int
    reuse_grpc_port: bool
    grpc_header_forward_pattern: str
    grpc_infer_thread_count: int
    grpc_infer_allocation_pool_size: int
    grpc_max_response_pool_size: int
    grpc_use_ssl: bool
    """True also where only --grpc-use-ssl-mutual was given."""
    grpc_use_ssl_mutual: bool
    grpc_server_cert: str
    grpc_server_key: str
    grpc_root_cert: str
    grpc_infer_response_compression_level: str
    """``none``, ``low``, ``medium`` or ``high``."""
    grpc_keepalive_time: int
    grpc_keepalive_timeout: int
    grpc_keepalive_permit_without_calls: bool
    grpc_http2_max_pings_without_data: int
    grpc_http2_min_recv_ping_interval_without_data: int
    grpc_http2_max_ping_strikes: int
    grpc_max_connection_age: int
    grpc_max_connection_age_grace: int
    grpc_restricted_protocol: Mapping[str, tuple[str, str]]
    """Protocol category to (key, value); the metadata key is ``triton-grpc-protocol-`` and the key."""

    allow_sagemaker: bool
    sagemaker_port: int
    sagemaker_safe_port_range: tuple[int, int] | None
    sagemaker_thread_count: int

    allow_vertex_ai: bool
    vertex_ai_port: int
    vertex_ai_thread_count: int
    vertex_ai_default_model: str

    allow_metrics: bool
    allow_gpu_metrics: bool
    """False where metrics are off as a whole; so is ``allow_cpu_metrics``."""
    allow_cpu_metrics: bool
    metrics_address: str
    metrics_port: int
    metrics_interval_ms: int
    metrics_config: Mapping[str, str]

    trace_config: tuple[Setting, ...]
    """In the order in which they take effect: the last one of a name wins, except ``level`` and ``resource``, which add up."""

    backend_directory: str
    backend_config: Mapping[str, Mapping[str, str]]
    """Backend name to its settings; "" holds those for all backends. See `backend_settings`."""
    repoagent_directory: str
    cache_config: Mapping[str, Mapping[str, str]]
    """Cache name to its settings; not empty means that responses are to be cached."""
    cache_directory: str
    rate_limit: str
    """``off`` or ``execution_count``."""
    rate_limit_resource: tuple[Resource, ...]
    """Sorted by name and device."""

    pinned_memory_pool_byte_size: int
    cuda_memory_pool_byte_size: Mapping[int, int]
    cuda_virtual_address_size: Mapping[int, int]
    min_supported_compute_capability: float
    buffer_manager_thread_count: int
    host_policy: Mapping[str, Mapping[str, str]]
    model_load_gpu_limit: Mapping[int, float]
    allow_client_shm: bool | None
    """None: clients on this host only."""

    given: tuple[str, ...]
    """The flags that were on the command line, without dashes, in order of first use, deprecated ones under their own names."""


def backend_settings(options: Options, backend: str) -> dict[str, str]:
    """The settings that hold for one backend: the server's own, those for all backends, and the backend's, later ones winning.

    What a backend is handed at start, and what the backend table shows.
    """
    settings = {
        "auto-complete-config": "false" if options.disable_auto_complete_config else "true",
        "backend-directory": options.backend_directory,
        "min-compute-capability": f"{options.min_supported_compute_capability:.6f}",
        "default-max-batch-size": "4",
    }
    settings.update(options.backend_config.get("", {}))
    own = options.backend_config.get(backend)
    if own:
        settings = dict(sorted({**settings, **own}.items()))
    return settings


def check_creation(options: Options) -> None:
    """What is refused only when the server is created, after the command line has been accepted.

    Raises `StatusError` (INVALID_ARG). Whether the repositories exist is found out by those who read them.
    """
    if not options.model_repository:
        raise invalid("--model-repository must be specified")
    if not options.repoagent_directory:
        raise invalid("--repoagent-directory can not be empty")
    if len(options.cache_config) > 1:
        raise invalid("found multiple cache configurations, but only a single cache is currently supported")
    if "*" in options.load_model and len(options.load_model) > 1:
        raise invalid("Wildcard model name '*' must be the ONLY startup model if specified at all.")
