"""Every command-line flag, declared once: what it takes, its default, its place and words in --help, whether it works yet.

Those of the doors are declared in `door_flags`. `command_line.parse` reads the table, `usage.usage_text` prints it,
`options.Options` has one attribute per flag (a test holds the two together).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from . import option_values as read
from .door_flags import door_groups
from .flag import BOOLEAN, FLOAT, INTEGER, NOTHING, PER_DEVICE, SCOPED, STRING, Flag, Group


def _general() -> Iterator[Group]:
    g = Group("", built=True)
    g.add("help", "", read.switch, False, "Print this text and leave.")
    yield g

    g = Group("Server", built=True)
    g.add("id", STRING, read.string, "triton", "The name this server gives itself in its metadata.")
    g.add(
        "exit-timeout-secs",
        INTEGER,
        read.at_least(0, read.integer),
        30,
        "On exit, how many seconds requests in flight may take to finish before the server leaves without them.",
    )
    g.add(
        "busy-poll-us",
        INTEGER,
        read.between(0, 10_000, "--busy-poll-us must be between 0 and 10000"),
        None,
        "How many microseconds the server process looks for more work before it sleeps, while few requests are in flight to models that "
        "take less than a millisecond: lower latency for a lone client, at the cost of processor time. 0: not at all. Default: 100; 0 "
        "where there are no more cores than processes that serve clients.",
    )
    g.add(
        "front-ends",
        INTEGER,
        read.between(0, 64, "--front-ends must be between 0 and 64"),
        0,
        "How many processes share the HTTP and the gRPC port, read requests and write replies, for machines whose cores a single process "
        "leaves idle. Every one of them serves every model and region. 0: the server process does it itself.",
    )
    yield g

    g = Group("Admission", built=True)
    g.add(
        "max-inflight-requests",
        INTEGER,
        read.at_least(0, read.integer),
        0,
        "How many requests may be in flight before those that come are refused, with status 503 and a Retry-After header. Steps of "
        "ensembles and calls of models are counted but never refused. 0: no limit.",
    )
    g.add(
        "max-inflight-byte-size",
        INTEGER,
        read.at_least(0, read.wide_integer),
        None,
        "How many bytes of memory the server process may hold for requests, their bodies and the replies that clients have not taken "
        "yet, before requests that come are refused in the same way. Tensors in shared memory of clients are not counted. 0: no limit "
        "but that of bodies above 64 KiB. Each of --front-ends has its share, which is also the most that one body may have. Default: "
        "--pinned-memory-pool-byte-size and a quarter of the machine's memory.",
    )
    g.add(
        "max-inflight-requests-per-model",
        "<<string>:<integer>>",
        read.model_limit,
        NOTHING,
        "MODEL:N or, for every model that is not named, N: how many requests may be in flight to one version of a model, in its queue "
        "and running, before those that come are refused in the same way; to an ensemble, before its first step. May be repeated. "
        "0: no limit.",
    )
    yield g

    g = Group("Logging", built=True)
    g.add(
        "log-verbose",
        INTEGER,
        read.verbosity,
        0,
        "How much detail to log: 0 none; 1 and up, each model's configuration as it was completed. true and false stand for 1 and 0.",
    )
    for level, what in (("info", "informative"), ("warning", "warning"), ("error", "error")):
        g.add(f"log-{level}", BOOLEAN, read.boolean, True, f"Write {what} lines to the log?")
    g.add(
        "log-format",
        STRING,
        read.choice(("default", "ISO8601"), "invalid argument for --log-format", any_case=False),
        "default",
        'How a log line begins: "default" with LMMDD hh:mm:ss.ssssss (L: the severity), "ISO8601" with YYYY-MM-DDThh:mm:ssZ L. '
        "Times are UTC.",
    )
    g.add("log-file", STRING, read.string, "", "Append the log to this file instead of writing it to the console.")
    yield g

    yield _repository()


def _repository() -> Group:
    g = Group("Model Repository", built=True)
    g.add("model-store", STRING, read.names, (), "Another name for --model-repository.", target="model-repository")
    g.add(
        "model-repository",
        STRING,
        read.names,
        (),
        "The folder that holds the models, or a place in the cloud (s3://, gs://, as://, abfs://, http://, https://). May be repeated; a "
        "model name found in more than one of them is not served.",
    )
    g.add(
        "exit-on-error",
        BOOLEAN,
        read.boolean,
        True,
        "Leave with an error if something goes wrong at start, a model that does not load included? If false, serve what works.",
    )
    g.add(
        "disable-auto-complete-config",
        "",
        read.switch,
        False,
        "Take model configurations as they are written: fill in nothing from the model itself, and refuse incomplete ones.",
    )
    g.add(
        "strict-readiness",
        BOOLEAN,
        read.boolean,
        True,
        "Report ready only while every model is (true), or as soon as the server answers (false)?",
    )
    g.add(
        "model-control-mode",
        STRING,
        read.choice(("none", "poll", "explicit", "lazy"), "invalid argument for --model-control-mode"),
        "none",
        "What decides which models are loaded: none (all of them at start, no change afterwards), poll (the repositories, looked "
        "through again and again), explicit (those of --load-model at start, then load and unload requests), lazy (each at its first "
        "request; changes in the repositories are seen when a model loads again, and new models at the next start).",
    )
    g.add(
        "lazy-model-count",
        INTEGER,
        read.at_least(0, read.integer),
        0,
        "With --model-control-mode=lazy, how many models may be in memory at once, ensembles included: the least recently used leave. "
        "0: no limit.",
    )
    g.add(
        "lazy-memory-byte-size",
        INTEGER,
        read.at_least(0, read.wide_integer),
        0,
        "With --model-control-mode=lazy, beyond how many bytes of memory of all workers together (their RSS, Python, libraries and "
        "shared memory included) models leave. It is looked at before a load, not while requests run; a model that is larger is loaded "
        "by itself. A worker that several models share gives memory back late, if at all; one that a model has to itself ends with it. "
        "0: no limit.",
    )
    g.add(
        "repository-poll-secs",
        INTEGER,
        read.integer,
        15,
        "Seconds between two looks at the repositories with --model-control-mode=poll. 0: none after the start.",
    )
    g.add(
        "repository-settle-ms",
        INTEGER,
        read.at_least(0, read.integer),
        1000,
        "With --model-control-mode=poll, how many milliseconds a change must have stayed as it is before it is taken over, so that no "
        "half copied model is loaded.",
    )
    g.add(
        "load-model",
        STRING,
        read.names,
        (),
        "A model to load at start with --model-control-mode=explicit. May be repeated; --load-model=* alone loads all.",
    )
    g.add(
        "model-config-name",
        STRING,
        read.filled("model-config-name"),
        "",
        "Configure each model from configs/NAME.pbtxt in its folder, if it has one, instead of config.pbtxt.",
    )
    g.add("model-load-thread-count", INTEGER, read.at_least(1, read.integer), 4, "How many models may load at once.")
    g.add("model-load-retry-count", INTEGER, read.integer, 0, "How often to try again to load a model that failed.")
    g.add(
        "model-namespacing",
        BOOLEAN,
        read.boolean,
        False,
        "Let models of the same name live side by side, each in the name space of its repository?",
    )
    g.add(
        "enable-peer-access",
        BOOLEAN,
        read.boolean,
        True,
        "Let GPUs read each other's memory where the machine can?",
        built=False,
    )
    return g


def _observation() -> Iterator[Group]:
    g = Group("Metrics", built=True)
    g.add("allow-metrics", BOOLEAN, read.boolean, True, "Serve Prometheus metrics?")
    g.add(
        "allow-gpu-metrics",
        BOOLEAN,
        read.boolean,
        True,
        "Include those of the GPUs, where there are any? They need the package nvidia-ml-py, which the extra gpu brings.",
    )
    g.add("allow-cpu-metrics", BOOLEAN, read.boolean, True, "Include those of the CPU and its memory?")
    g.add("metrics-address", STRING, read.string, None, "The address to serve metrics on. Default: that of --http-address.")
    g.add("metrics-port", INTEGER, read.integer, 8002, "The port to serve metrics on.")
    g.add("metrics-interval-ms", INTEGER, read.integer, 2000, "Milliseconds between two looks at the machine.")
    g.add(
        "metrics-config",
        "<<string>=<string>>",
        read.metrics_setting,
        NOTHING,
        "SETTING=VALUE: counter_latencies, histogram_latencies or summary_latencies with true or false, summary_quantiles with "
        "QUANTILE:ERROR,... May be repeated.",
    )
    yield g

    g = Group("Tracing", built=False)
    g.add(
        "trace-config",
        SCOPED,
        read.trace_setting,
        (),
        "SETTING=VALUE for level, rate, count or mode (triton or opentelemetry); MODE,SETTING=VALUE for what belongs to one "
        "mode. May be repeated.",
    )
    yield g


def _parts() -> Iterator[Group]:
    g = Group("Backend", built=True)
    g.add(
        "backend-directory",
        STRING,
        read.string,
        "/opt/tritonserver/backends",
        "Where backends written in Python lie: NAME/model.py or NAME/backend.py. onnxruntime and python are built in.",
    )
    g.add(
        "backend-config",
        SCOPED,
        read.backend_setting,
        NOTHING,
        "BACKEND,SETTING=VALUE for one backend, such as onnxruntime; SETTING=VALUE for all. May be repeated.",
    )
    yield g

    g = Group("Repository Agent", built=True)
    g.add(
        "repoagent-directory",
        STRING,
        read.string,
        "/opt/tritonserver/repoagents",
        "Where the original has the libraries of repository agents. The agent checksum is built in here, and there are no others.",
    )
    yield g

    g = Group("Response Cache", built=True)
    g.add(
        "cache-config",
        SCOPED,
        read.cache_setting,
        NOTHING,
        "CACHE,SETTING=VALUE: keep the answers of models with response_cache { enable: true }. local,size=1048576 keeps 1 MiB of them in "
        "this process. redis,host=HOST with redis,port=PORT keeps them in a Redis, which servers may share; further settings of redis are "
        "user, password (or the environment's TRITONCACHE_REDIS_USERNAME and TRITONCACHE_REDIS_PASSWORD), db, connect_timeout, "
        "socket_timeout and wait_timeout in ms, pool_size, tls_enabled, cert, key, cacert and cacert_dir. May be repeated.",
    )
    g.add(
        "cache-directory",
        STRING,
        read.string,
        "/opt/tritonserver/caches",
        "Where the original has the libraries of caches. The caches local and redis are built in here, and there are no others.",
    )
    yield g

    g = Group("Rate Limiter", built=True)
    g.add(
        "rate-limit",
        STRING,
        read.choice(("off", "execution_count"), "invalid argument for --rate-limit"),
        "off",
        "off: a free model instance runs at once. execution_count: it waits for the resources its configuration names, and the "
        "instances that ran least, weighed by priority, go first.",
    )
    g.add(
        "rate-limit-resource",
        "<<string>:<integer>:<integer>>",
        read.rate_limit_resource,
        (),
        "NAME:COUNT:DEVICE or, for every device, NAME:COUNT: how many of a resource there are, and of those not named none. May "
        "be repeated. Default: as many as the neediest instance asks for.",
    )
    yield g


def _memory() -> Group:
    g = Group("Memory/Device Management", built=False)
    g.add(
        "pinned-memory-pool-byte-size",
        INTEGER,
        read.at_least(0, read.wide_integer),
        1 << 28,
        "How many bytes of shared memory the server and each worker keep for tensors on their way. What they take beyond it is given "
        "back as soon as it is free.",
        built=True,
    )
    g.add(
        "cuda-memory-pool-byte-size",
        PER_DEVICE,
        read.device_sizes,
        NOTHING,
        "GPU:BYTES: how much of a GPU's memory holds tensors on their way. May be repeated. Default: 67108864 (64 MiB) each.",
        built=True,
    )
    g.add(
        "cuda-virtual-address-size",
        PER_DEVICE,
        read.device_sizes,
        NOTHING,
        "GPU:BYTES: how large a growing sequence state may become. May be repeated. Default: 1073741824 (1 GiB) each.",
    )
    g.add(
        "min-supported-compute-capability",
        FLOAT,
        read.real,
        6.0,
        "Leave GPUs of a lower CUDA compute capability alone.",
        built=True,
    )
    g.add("buffer-manager-thread-count", INTEGER, read.integer, 0, "How many threads copy inputs side by side.")
    g.add(
        "host-policy",
        SCOPED,
        read.host_policy,
        NOTHING,
        "POLICY,SETTING=VALUE: numa-node or cpu-cores for the model instances that name this policy. May be repeated.",
    )
    g.add(
        "model-load-gpu-limit",
        "<<integer>:<float>>",
        read.device_fractions,
        NOTHING,
        "GPU:FRACTION: load no model on a GPU whose memory is used beyond this fraction. May be repeated. Default: 1.0 each.",
        built=True,
    )
    g.add(
        "allow-client-shm",
        BOOLEAN,
        read.boolean,
        None,
        "May clients register shared-memory regions? true: all clients; false: none. Default: only clients on this host.",
        built=True,
    )
    return g


def _deprecated() -> Group:
    g = Group("Deprecated", built=False)
    g.add(
        "strict-model-config",
        BOOLEAN,
        read.boolean,
        None,
        "true is --disable-auto-complete-config.",
        built=True,
        target="disable-auto-complete-config",
        warning="Warning: '--strict-model-config' has been deprecated! Please use '--disable-auto-complete-config' instead.",
    )
    g.add(
        "response-cache-byte-size",
        INTEGER,
        read.old_cache_size,
        None,
        "N is --cache-config=local,size=N.",
        built=True,
        target="cache-config",
        warning="Warning: '--response-cache-byte-size' has been deprecated! This will default to the 'local' cache implementation with "
        "the provided byte size for its config. Please use '--cache-config' instead. The equivalent --cache-config CLI args would be: "
        "'--cache-config=local,size={}'",
    )
    for name, metavar, scope, setting, example, text in (
        ("trace-file", STRING, "triton", "file", "triton,file=<filepath>", "--trace-config triton,file=..."),
        ("trace-level", STRING, "", "level", "level=<OFF|TIMESTAMPS|TENSORS>", "--trace-config level=..."),
        ("trace-rate", INTEGER, "", "rate", "rate=<rate value>", "--trace-config rate=..."),
        ("trace-count", INTEGER, "", "count", "count=<count value>", "--trace-config count=..."),
        (
            "trace-log-frequency",
            INTEGER,
            "triton",
            "log-frequency",
            "triton,log-frequency=<log frequency value>",
            "--trace-config triton,log-frequency=...",
        ),
    ):
        g.add(
            name,
            metavar,
            read.old_trace_setting(scope, setting),
            None,
            f"Is {text}",
            target="trace-config",
            warning=f"Warning: '--{name}' has been deprecated and will be removed in future releases. "
            f"Please use '--trace-config {example} instead.",
        )
    return g


def _groups() -> Iterator[Group]:
    yield from _general()
    yield from door_groups()
    yield from _observation()
    yield from _parts()
    yield _memory()
    yield _deprecated()


FLAGS: tuple[Flag, ...] = tuple(flag for group in _groups() for flag in group.flags)
FLAG_BY_NAME: Mapping[str, Flag] = MappingProxyType({flag.name: flag for flag in FLAGS})
