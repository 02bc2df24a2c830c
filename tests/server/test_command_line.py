"""Command lines, good and bad. The texts are those of the real server (24.10), tried there one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfarm.server.command_line import CommandLineError, parse, read_options, unbuilt_flags, unbuilt_warning
from tensorfarm.server.option_table import FLAGS
from tensorfarm.server.option_values import BadValue, Resource, Setting, to_integer, to_real, to_unsigned
from tensorfarm.server.options import Options
from tensorfarm.server.usage import usage_text


def options_of(*argv: str, **environ: str) -> Options:
    return read_options(argv, environ, lambda text: None)


def complaint(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[str, str]:
    """What stderr shows before and after the usage text, for a command line that ends the program with code 1."""
    with pytest.raises(SystemExit) as left:
        parse(argv, {})
    assert left.value.code == 1
    out, err = capsys.readouterr()
    assert out == ""
    before, found, after = err.partition(usage_text())
    assert found
    return before, after


FORMAT = "option format is"
BAD_LINES = [
    (["--help"], "", "\n\n"),
    (["--he"], "", "\n\n"),
    (["stray", "--help"], "", "\n\n"),
    (["--help", "--http-port=abc"], "", "\n\n"),
    (["--nope"], "tensorfarm: unrecognized option '--nope'\n", "\n\n"),
    (["--nope=3"], "tensorfarm: unrecognized option '--nope=3'\n", "\n\n"),
    (["-xy"], "tensorfarm: invalid option -- 'x'\n", "\n\n"),
    (["stray"], "", "\nUnexpected argument: stray\n"),
    (["-"], "", "\nUnexpected argument: -\n"),
    (["--", "--http-port=abc"], "", "\nUnexpected argument: --http-port=abc\n"),
    (["stray", "--http-port=abc"], "", '\nBad option: "--http-port".\nInvalid option value. Got abc\n\n\n'),
    (["--http-port"], "tensorfarm: option '--http-port' requires an argument\n", "\n\n"),
    (["--help=1"], "tensorfarm: option '--help' doesn't allow an argument\n", "\n\n"),
    (
        ["--reuse=1"],
        "tensorfarm: option '--reuse=1' is ambiguous; possibilities: '--reuse-http-port' '--reuse-grpc-port'\n",
        "\n\n",
    ),
    (
        ["--model-"],
        "tensorfarm: option '--model-' is ambiguous; possibilities: '--model-store' '--model-control-mode' '--model-config-name' "
        "'--model-load-thread-count' '--model-load-retry-count' '--model-namespacing' '--model-load-gpu-limit'\n",
        "\n\n",
    ),
    (["--http-p=abc"], "", '\nBad option: "--http-port".\nInvalid option value. Got abc\n\n\n'),
    (["--http-port", "--grpc-port"], "", '\nBad option: "--http-port".\nInvalid option value. Got --grpc-port\n\n\n'),
    (["--http-port=2147483648"], "", '\nBad option: "--http-port".\nProvided option value is out of bound. Got 2147483648\n\n\n'),
    (["--allow-http=maybe"], "", '\nBad option: "--allow-http".\ninvalid value for bool option: maybe\n\n'),
    (["--log-format=iso8601"], "", '\nBad option: "--log-format".\ninvalid argument for --log-format\n\n'),
    (["--log-verbose=on"], "", '\nBad option: "--log-verbose".\nInvalid option value. Got on\n\n\n'),
    (["--model-control-mode=x"], "", '\nBad option: "--model-control-mode".\ninvalid argument for --model-control-mode\n\n'),
    (["--rate-limit=x"], "", '\nBad option: "--rate-limit".\ninvalid argument for --rate-limit\n\n'),
    (["--model-config-name="], "", '\nBad option: "--model-config-name".\nError: empty argument for --model-config-name\n\n'),
    (["--http-max-input-size=0"], "", '\nBad option: "--http-max-input-size".\nError: --http-max-input-size must be greater than 0.\n\n'),
    (
        ["--grpc-infer-thread-count=1"],
        "",
        '\nBad option: "--grpc-infer-thread-count".\ninvalid argument for --grpc_infer_thread_count. Must be in the range 2 to 128.\n\n',
    ),
    (["--load-model=a"], "", "\nError: Use of '--load-model' requires setting '--model-control-mode=explicit' as well.\n"),
    (["--http-restricted-api=x:a=b"], "", "\nBad option: \"--http-restricted-api\".\nunknown restricted api 'x' \n\n\n"),
    (["--grpc-restricted-protocol=x:a=b"], "", "\nBad option: \"--grpc-restricted-protocol\".\nunknown restricted protocol 'x' \n\n\n"),
    (
        ["--http-restricted-api=health:a"],
        "",
        f"\nBad option: \"--http-restricted-api\".\n--http-restricted-api {FORMAT} '<config name>:<setting>=<value>'. Got health:a\n\n\n",
    ),
    (
        ["--http-restricted-api=health:a=b", "--http-restricted-api=trace,health:c=d"],
        "",
        "\nBad option: \"--http-restricted-api\".\nrestricted api 'health' can not be specified in multiple config groups\n\n\n",
    ),
    (["--metrics-config=n,a=b"], "", f'\nBad option: "--metrics-config".\n--metrics-config {FORMAT} <setting>=<value>. Got n,a=b\n\n\n'),
    (
        ["--backend-config=b,x"],
        "",
        f"\nBad option: \"--backend-config\".\n--backend-config {FORMAT} '<backend name>,<setting>=<value>'. Got b,x\n\n\n",
    ),
    (
        ["--backend-config=,x=1"],
        "",
        f'\nBad option: "--backend-config".\nNo backend specified. --backend-config {FORMAT} <backend name>,<setting>=<value> or '
        "<setting>=<value>. Got ,x=1\n\n\n",
    ),
    (
        ["--cache-config=x=1"],
        "",
        f'\nBad option: "--cache-config".\nNo cache specified. --cache-config {FORMAT} <cache name>,<setting>=<value>. Got x=1\n\n\n',
    ),
    (
        ["--trace-config=foo,a"],
        "",
        '\nBad option: "--trace-config".\ninvalid value for trace mode option: foo. Available options are "triton" and "opentelemetry"\n\n',
    ),
    (["--trace-config=level=x"], "", '\nBad option: "--trace-config level".\ninvalid value for trace level option: x\n\n'),
    (
        ["--trace-config=TRITON,log-frequency=x"],
        "",
        '\nBad option: "--trace-config triton,log-frequency".\nInvalid option value. Got x\n\n\n',
    ),
    (
        ["--rate-limit-resource=a"],
        "",
        f"\nBad option: \"--rate-limit-resource\".\n--rate-limit-resource {FORMAT} '<resource_name>:<count>:<device>' or "
        "'<resource_name>:<count>'. Got a\n\n",
    ),
    (
        ["--cuda-memory-pool-byte-size=1"],
        "",
        '\nBad option: "--cuda-memory-pool-byte-size".\nCannot parse pair option due to incorrect number of inputs.--<pair option> '
        "argument requires format <first>:<second>. Found: 1\n\n\n",
    ),
    (["--sagemaker-safe-port-range=-5"], "", '\nBad option: "--sagemaker-safe-port-range".\nInvalid option value. Got \n\n\n'),
    (
        ["--strict-model-config=x"],
        "Warning: '--strict-model-config' has been deprecated! Please use '--disable-auto-complete-config' instead.\n",
        '\nBad option: "--strict-model-config".\ninvalid value for bool option: x\n\n',
    ),
    (
        ["--http-port=8001"],
        "",
        "\nThe server cannot listen to HTTP requests and GRPC requests at the same address and port 0.0.0.0:8001\n\n",
    ),
    (
        ["--allow-grpc=0", "--allow-vertex-ai=1", "--vertex-ai-port=8002"],
        "",
        "\nThe server cannot listen to metrics requests and Vertex AI requests at the same address and port 0.0.0.0:8002\n\n",
    ),
]


@pytest.mark.parametrize(("argv", "before", "after"), BAD_LINES, ids=[" ".join(line[0]) for line in BAD_LINES])
def test_bad_command_lines(capsys: pytest.CaptureFixture[str], argv: list[str], before: str, after: str) -> None:
    assert complaint(capsys, *argv) == (before, after)


@pytest.mark.parametrize("flag", ["lazy-model-count", "lazy-memory-byte-size"])
def test_budgets_are_for_lazy_loading(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    for mode in ("none", "poll", "explicit"):
        before, after = complaint(capsys, f"--model-control-mode={mode}", f"--{flag}=0")
        assert (before, after) == ("", f"\nError: Use of '--{flag}' requires setting '--model-control-mode=lazy' as well.\n")
    assert getattr(options_of("--model-control-mode=lazy"), flag.replace("-", "_")) == 0
    assert getattr(options_of("--model-control-mode=lazy", f"--{flag}=7"), flag.replace("-", "_")) == 7
    assert getattr(options_of("--model-control-mode=lazy", f"--{flag}=-1"), flag.replace("-", "_")) == 0
    assert "Bad option" in complaint(capsys, "--model-control-mode=lazy", f"--{flag}=many")[1]


def test_lazy_loading_excludes_other_ways(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'--load-model' requires" in complaint(capsys, "--model-control-mode=lazy", "--load-model=a")[1]
    assert "'--model-namespacing' cannot be used" in complaint(capsys, "--model-control-mode=lazy", "--model-namespacing=true")[1]


def test_two_ways_to_give_the_cache_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    before, after = complaint(capsys, "--response-cache-byte-size=5", "--cache-config=a,b=1")
    assert before.endswith("The equivalent --cache-config CLI args would be: '--cache-config=local,size=5'\n")
    assert after == (
        "\nError: Incompatible flags --response-cache-byte-size and --cache-config both provided. Please provide one or the other.\n"
    )


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (
            ["--host-policy=a,b=c"],
            "setting host policy: Unsupported - Unsupported host policy setting 'b' is specified, supported settings are "
            "'numa-node', 'cpu-cores'",
        ),
        (["--model-load-gpu-limit=-1:5"], "setting model load GPU limit: Invalid argument - expects device ID >= 0, got -1"),
        (
            ["--host-policy=a,b=c", "--model-load-gpu-limit=0:7"],
            "setting model load GPU limit: Invalid argument - expects limit fraction to be in range [0.0, 1.0], got 7.000000",
        ),
    ],
)
def test_device_settings_are_refused_without_the_usage_text(capsys: pytest.CaptureFixture[str], argv: list[str], text: str) -> None:
    with pytest.raises(SystemExit) as left:
        parse(argv, {})
    assert left.value.code == 1
    assert capsys.readouterr().err == f"Failed to build Triton option:\nerror: {text}\n"


def test_defaults() -> None:
    options = options_of()
    assert (options.id, options.http_address, options.http_port, options.metrics_port) == ("triton", "0.0.0.0", 8000, 8002)
    assert options.metrics_address == "0.0.0.0"
    assert options.exit_timeout_secs == 30
    assert options.http_max_input_size == 67108864
    assert options.pinned_memory_pool_byte_size == 268435456
    assert options.allow_client_shm is None
    assert options.allow_vertex_ai is False
    assert options.vertex_ai_port == 8080
    assert options.repository_poll_secs == 0
    assert options.model_repository == ()
    assert options.given == ()


def test_values_stand_behind_an_equals_sign_or_follow() -> None:
    options = options_of("--http-port=1234", "--id", "me", "--model-rep", "/b", "--model-store=/a", "--model-repository=/b", "--")
    assert (options.http_port, options.id) == (1234, "me")
    assert options.model_repository == ("/a", "/b")
    assert options.given == ("http-port", "id", "model-repository", "model-store")


def test_the_last_use_wins() -> None:
    options = options_of("--http-port=1", "--http-port=2", "--strict-model-config=true", "--strict-model-config=false")
    assert options.http_port == 2
    assert options.disable_auto_complete_config is False


def test_switches_and_booleans() -> None:
    options = options_of("--disable-auto-complete-config", "--allow-client-shm=OFF", "--strict-readiness=0", "--log-verbose=TRUE")
    assert options.disable_auto_complete_config is True
    assert options.allow_client_shm is False
    assert options.strict_readiness is False
    assert options.log_verbose == 1


def test_numbers_with_a_floor() -> None:
    options = options_of("--model-load-thread-count=0", "--exit-timeout-secs=-3", "--pinned-memory-pool-byte-size=-5")
    assert options.model_load_thread_count == 1
    assert options.exit_timeout_secs == 0
    assert options.pinned_memory_pool_byte_size == 0


def test_defaults_that_follow_other_flags() -> None:
    options = options_of("--http-address=1.2.3.4", "--allow-metrics=false", "--grpc-use-ssl-mutual=true", "--model-control-mode=POLL")
    assert options.metrics_address == "1.2.3.4"
    assert not options.allow_cpu_metrics
    assert not options.allow_gpu_metrics
    assert options.grpc_use_ssl
    assert (options.model_control_mode, options.repository_poll_secs) == ("poll", 15)


def test_defaults_from_the_environment() -> None:
    options = options_of(AIP_MODE="PREDICTION", AIP_HTTP_PORT="7080", AIP_STORAGE_URI="/models")
    assert (options.allow_vertex_ai, options.vertex_ai_port, options.model_repository) == (True, 7080, ("/models",))
    assert options_of("--model-repository=/mine", AIP_STORAGE_URI="/models").model_repository == ("/mine",)


def test_repeated_settings_are_gathered() -> None:
    options = options_of(
        "--backend-config=onnxruntime,threads=4",
        "--backend-config=a=b,c=d",
        "--backend-config=g=h=i",
        "--metrics-config=summary_quantiles=0.5:0.05,0.9:0.01",
        "--http-restricted-api=health,metadata:key:x=v=w",
        "--http-restricted-api=trace:t=u",
        "--rate-limit-resource=b:1",
        "--rate-limit-resource=a:2:1",
        "--rate-limit-resource=b:3",
        "--rate-limit-resource=a:-1:1",
        "--rate-limit-resource=c:-1",
        "--cuda-memory-pool-byte-size=0:5",
        "--cuda-memory-pool-byte-size=0:-1",
        "--model-load-gpu-limit=0:0.5",
        "--sagemaker-safe-port-range=5-9-1",
    )
    assert options.backend_config == {"onnxruntime": {"threads": "4"}, "a=b": {"c": "d"}, "": {"g": "h=i"}}
    assert options.metrics_config == {"summary_quantiles": "0.5:0.05,0.9:0.01"}
    assert options.http_restricted_api == {"health": ("key:x", "v=w"), "metadata": ("key:x", "v=w"), "trace": ("t", "u")}
    assert options.rate_limit_resource == (Resource("a", 2, 1), Resource("b", 1, -1), Resource("c", -1, -1))
    assert options.cuda_memory_pool_byte_size == {0: (1 << 64) - 1}
    assert options.model_load_gpu_limit == {0: 0.5}
    assert options.sagemaker_safe_port_range == (5, 9)


def test_deprecated_flags_become_the_new_ones() -> None:
    warnings: list[str] = []
    options = read_options(
        ["--response-cache-byte-size=7", "--trace-rate=5", "--trace-level=max", "--trace-file=f", "--trace-config=rate=6"],
        {},
        warnings.append,
    )
    assert options.cache_config == {"local": {"size": "7"}}
    assert options.trace_config == (Setting("", "level", "TIMESTAMPS"), Setting("triton", "file", "f"), Setting("", "rate", "6"))
    assert len(warnings) == 5
    assert warnings[-1] == "Warning: Overriding deprecated '--trace-rate' in favor of provided rate value in --trace-config!"


def test_flags_without_effect_are_named_once_each() -> None:
    options = options_of("--sagemaker-port=9", "--buffer-manager-thread-count=2", "--sagemaker-port=10", "--http-port=1", "--trace-rate=3")
    assert unbuilt_flags(options) == ["--sagemaker-port", "--buffer-manager-thread-count", "--trace-rate"]
    assert unbuilt_warning(options).endswith(": --sagemaker-port, --buffer-manager-thread-count, --trace-rate")
    assert "\n" not in unbuilt_warning(options)


def test_asking_for_what_happens_anyway_is_no_reason_to_warn() -> None:
    options = options_of("--allow-vertex-ai=false", "--allow-sagemaker=false", "--allow-gpu-metrics=false")
    assert unbuilt_flags(options) == []
    assert unbuilt_warning(options) == ""
    assert unbuilt_flags(options_of("--allow-vertex-ai=true", "--vertex-ai-port=8090", "--allow-sagemaker=true")) == [
        "--allow-vertex-ai",
        "--vertex-ai-port",
        "--allow-sagemaker",
    ]


def test_usage_names_every_flag_under_headings_in_eighty_columns() -> None:
    text = usage_text()
    assert text.startswith("Usage: tensorfarm [options]\n")
    assert max(len(line) for line in text.splitlines()) <= 80
    for flag in FLAGS:
        assert f"\n  --{flag.name}" in text
    assert "\nHTTP:\n  --allow-http <boolean>\n        Serve HTTP? Default: true.\n" in text


@pytest.mark.parametrize(
    ("text", "value"),
    [("8000abc", 8000), (" \t\n\v\f\r+12", 12), ("1.9", 1), ("-5", -5), ("0x1F", 0), ("007", 7), ("2147483647", 2147483647)],
)
def test_integers_end_where_the_digits_end(text: str, value: int) -> None:
    assert to_integer(text) == value


@pytest.mark.parametrize("text", ["", "x", "-", "+-1", " ", "\u0663", "2147483648", "-2147483649", "9" * 5000])
def test_no_integers(text: str) -> None:
    with pytest.raises(BadValue, match="Got"):
        to_integer(text)


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_every_64_bit_integer_is_read(value: int) -> None:
    assert to_integer(str(value), 64) == value
    assert to_unsigned(str(value)) == value % (1 << 64)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1.5x", 1.5), (".5e", 0.5), ("0x1p3", 8.0), ("0x", 0.0), ("-inf", float("-inf")), ("0e-400", 0.0), ("1e3", 1000.0), ("5.", 5.0)],
)
def test_reals(text: str, value: float) -> None:
    assert to_real(text) == value


@pytest.mark.parametrize("text", ["", ".", "x", "1e400", "1e-400", "0x1p99999"])
def test_no_reals(text: str) -> None:
    with pytest.raises(BadValue, match="Got"):
        to_real(text)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12), max_size=4))
def test_no_words_can_make_parsing_fail_in_any_other_way(words: list[str]) -> None:
    try:
        options_of(*words, *(f"--{flag.name}={word}" for word in words for flag in FLAGS[::7]))
    except CommandLineError as error:
        assert error.usage
