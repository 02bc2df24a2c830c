"""Python models that cannot be loaded, each for a reason of its own, and some that look as if they could not but can."""

from __future__ import annotations

from pathlib import Path

CONFIG = """\
name: "{name}"
backend: "python"
max_batch_size: 0
input [ {{ name: "X", data_type: TYPE_INT32, dims: [ -1 ] }} ]
output [ {{ name: "Y", data_type: TYPE_INT32, dims: [ -1 ] }} ]
instance_group [ {{ count: {count}, kind: KIND_CPU }} ]
{extra}"""

EXECUTE = """
    def execute(self, requests):
        return [pb_utils.InferenceResponse() for _ in requests]
"""

IMPORTS = "import os\nimport sys\n\nimport triton_python_backend_utils as pb_utils\n\n\n"


def model(body: str) -> str:
    """The source of a model whose class has these lines, beside an execute() that is right."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return f"{IMPORTS}class TritonPythonModel:\n{lines}{EXECUTE}"


SOURCES = {
    "initialize_raises": model("def initialize(self, args):\n    raise ValueError('no way')"),
    "initialize_raises_deep": model("def help(self):\n    raise KeyError('x')\n\ndef initialize(self, args):\n    self.help()"),
    "initialize_model_exception": model("def initialize(self, args):\n    raise pb_utils.TritonModelException('no way')"),
    "initialize_without_text": model("def initialize(self, args):\n    raise ValueError"),
    "initialize_exits": model("def initialize(self, args):\n    sys.exit(3)"),
    "initialize_no_arguments": model("def initialize(self):\n    pass"),
    "initialize_returns": model("def initialize(self, args):\n    return 5"),
    "constructor_raises": model("def __init__(self):\n    raise ValueError('no way')"),
    "constructor_wants_more": model("def __init__(self, more):\n    pass"),
    "no_class": f"{IMPORTS}class Model:\n{EXECUTE}",
    "class_is_a_number": "TritonPythonModel = 5\n",
    "syntax_error": "class TritonPythonModel\n",
    "indentation_error": "class TritonPythonModel:\npass\n",
    "import_error": f"import no_such_module\n\n\n{model('pass')}",
    "name_error": f"{model('pass')}\nno_such_name\n",
    "module_raises": f"{model('pass')}\nraise RuntimeError('at the top')\n",
    "module_exits": f"{IMPORTS}sys.exit(5)\n",
    "no_execute_method": "class TritonPythonModel:\n    pass\n",
    "one_of_two": model(
        "def initialize(self, args):\n    if args['model_instance_name'].endswith('_1'):\n        raise ValueError('the second')"
    ),
    "bad_parameter": model("pass"),
    "no_environment": model("pass"),
    "empty_environment": model("pass"),
    "environment_of_its_own": model("pass"),
    "own_file_name": model("pass"),
    "wrong_file_name": model("pass"),
    "no_such_backend": model("pass"),
}
"""The source of each model's file."""

PARAMETER = 'parameters [ {{ key: "{key}", value {{ string_value: "{value}" }} }} ]\n'

EXTRA = {
    "bad_parameter": PARAMETER.format(key="FORCE_CPU_ONLY_INPUT_TENSORS", value="maybe"),
    "no_environment": PARAMETER.format(key="EXECUTION_ENV_PATH", value="/nonexistent/environment.tar.gz"),
    "empty_environment": PARAMETER.format(key="EXECUTION_ENV_PATH", value="/dev"),
    "environment_of_its_own": PARAMETER.format(key="EXECUTION_ENV_PATH", value="$$TRITON_MODEL_DIRECTORY/environment"),
    "own_file_name": 'default_model_filename: "mine.py"\n',
    "wrong_file_name": 'default_model_filename: "mine.txt"\n',
}
"""More of their configurations."""

AUTO_COMPLETE = {
    "complete_none": model("@staticmethod\ndef auto_complete_config(config):\n    pass"),
    "complete_dict": model("@staticmethod\ndef auto_complete_config(config):\n    return config.as_dict()"),
    "complete_raises": model("@staticmethod\ndef auto_complete_config(config):\n    raise ValueError('no way')"),
    "complete_exits": model("@staticmethod\ndef auto_complete_config(config):\n    sys.exit(4)"),
    "complete_no_arguments": model("@staticmethod\ndef auto_complete_config():\n    pass"),
    "complete_not_static": model("def auto_complete_config(self, config):\n    return config"),
    "complete_batch_size": model("@staticmethod\ndef auto_complete_config(config):\n    config.set_max_batch_size(-1)\n    return config"),
    "complete_other_datatype": model(
        "@staticmethod\n"
        "def auto_complete_config(config):\n"
        "    config.add_input({'name': 'X', 'data_type': 'TYPE_FP32', 'dims': [-1]})\n"
        "    return config"
    ),
    "complete_other_dims": model(
        "@staticmethod\n"
        "def auto_complete_config(config):\n"
        "    config.add_output({'name': 'Y', 'data_type': 'TYPE_INT32', 'dims': [2, 3]})\n"
        "    return config"
    ),
    "complete_less": model(
        "@staticmethod\ndef auto_complete_config(config):\n    config.add_input({'name': 'Z', 'dims': [-1]})\n    return config"
    ),
    "complete_more": model(
        "@staticmethod\n"
        "def auto_complete_config(config):\n"
        "    config.add_input({'name': 'Z', 'data_type': 'TYPE_INT32', 'dims': [1], 'colour': 'red'})\n"
        "    return config"
    ),
    "complete_policy": model(
        "@staticmethod\ndef auto_complete_config(config):\n    config.set_model_transaction_policy({'coupled': True})\n    return config"
    ),
}
"""Models whose auto_complete_config() is wrong."""


def write_model(root: Path, name: str, source: str, file: str = "model.py") -> None:
    """Write one model's folder."""
    folder = root / name
    (folder / "1").mkdir(parents=True)
    config = CONFIG.format(name=name, count=2 if name == "one_of_two" else 1, extra=EXTRA.get(name, ""))
    if name == "no_such_backend":
        config = config.replace('"python"', '"nosuch"')
    (folder / "config.pbtxt").write_text(config)
    (folder / "1" / file).write_text(source)


def write_broken(root: Path) -> None:
    """Write all that fail without auto-complete."""
    files = {"own_file_name": "mine.py", "wrong_file_name": "mine.txt"}
    for name, source in SOURCES.items():
        write_model(root, name, source, files.get(name, "model.py"))
