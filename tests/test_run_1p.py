"""run_1p.sh and run_tests.sh as a user runs them: copies of them, with interpreters that are made here.

An interpreter is the real Python without its site-packages, and has the version of its file name. Its folder
``packages`` holds small modules in place of venv and pip. This pip makes empty packages, so no network is
needed. It can be told to wait or to fail.
"""
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent

INTERPRETER = """\
#!/bin/sh
export INTERPRETER="$0"
packages="${{0%/*}}/../packages"
export PYTHONPATH="$packages${{PYTHONPATH:+:$PYTHONPATH}}"
exec '{}' -S "$packages/interpreter.py" {} "$@"
"""

MODULES = {
    "interpreter.py": """
        import glob, os, runpy, sys, types

        version, option, *sys.argv = sys.argv[1:]
        sys.version_info = tuple(map(int, version.split(".")))
        def version(name):
            for path in glob.glob(os.path.dirname(__file__) + "/" + name + "-*"):
                return os.path.basename(path)[len(name) + 1:-10]
            raise ImportError(name)

        # the tests' own Python may be older or newer than the version to be
        sys.modules["importlib_metadata"] = types.SimpleNamespace(version=version)
        try:
            import importlib.metadata
        except ImportError:
            sys.modules["importlib.metadata"] = sys.modules["importlib_metadata"]
        if option == "-c":
            exec(sys.argv[0], {})
        elif option == "-m":
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:   # -u
            sys.stdout.reconfigure(line_buffering=True)
            runpy.run_path(sys.argv[0], run_name="__main__")
    """,
    "step.py": """
        import os, sys

        def step(name):
            with open(os.environ["LOG"], "a") as log:
                log.write(name + "\\n")
            if os.environ.get("WAIT_IN") == name:
                print("waits", file=sys.stderr, flush=True)
                try:
                    sys.stdin.read()
                except KeyboardInterrupt:
                    sys.exit("Operation cancelled by user")
            if os.environ.get("FAIL_IN") == name:
                sys.exit("no network")

        def install(folder, names):
            for name in names:
                os.makedirs(os.path.join(folder, name), exist_ok=True)
                open(os.path.join(folder, name, "__init__.py"), "w").write(
                    "raise AssertionError('takes seconds to import')")
                open(os.path.join(folder, name, "METADATA"), "w").write(
                    "Name: {}\\nVersion: {}".format(*name[:-10].split("-")) if "-" in name else "")
    """,
    # Like the real one, it leaves files that are there already.
    "venv.py": """
        import os, shutil, sys
        from step import step

        if __name__ == "__main__":
            folder = sys.argv[1]
            os.makedirs(folder + "/bin", exist_ok=True)
            step("venv")
            shutil.copy(os.environ["INTERPRETER"], folder + "/bin/python")
            shutil.copytree(os.path.dirname(__file__), folder + "/packages")
    """,
    "ensurepip.py": "",
    # The first word of the requirements goes to the log, the others are packages.
    "pip.py": """
        import os, sys
        from step import install, step

        def value(option):
            return sys.argv[sys.argv.index(option) + 1]

        if __name__ == "__main__":
            if "--target" in sys.argv:
                os.makedirs(value("--target"))
            words = open(value("-r")).read().split() if "-r" in sys.argv else ["pip itself"]
            step(words[0])
            install(os.path.dirname(__file__), words[1:])
            if "--target" in sys.argv:
                with open(value("--target") + "/pytest.py", "w") as module:
                    module.write("import os, sys; print(os.getcwd(), sys.argv[1:]); sys.exit(5)")
    """,
}

TRAINING = """
import json, os, sys
print(json.dumps({"flags": sys.argv[1:], "pid": os.getpid(), "environment": dict(os.environ)}))
if "--wait" in sys.argv:
    sys.stdin.read()
sys.exit(int(os.environ.get("STATUS", 0)))
"""

READY = ["tensorflow", "PIL", "tf_keras", "keras-3.9.0.dist-info"]
INSTALLATION, WITH_CUDA = ["venv", "pip itself", "cpu"], ["venv", "pip itself", "cuda"]     # in the log


def write(path, text, mode=0o644):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    path.chmod(mode)


def add_python(path, *packages):
    """Make an interpreter at path, in a folder bin, with these packages. Returns their folder."""
    write(path, INTERPRETER.format(sys.executable, path.name[6:] if "." in path.name else "3.11"), 0o755)
    folder = path.parent.parent / "packages"
    for name, text in MODULES.items():
        write(folder / name, text)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import step; step.install(sys.argv[1], sys.argv[2:])"
    subprocess.run([sys.executable, "-c", code, str(folder), *packages], check=True)
    return folder


class Project:
    """A checkout in a folder with a space, on a system with few commands: no git, no flock and no HOME."""

    def __init__(self, root):
        self.root = root
        self.folder = root / "check out"
        self.processes = []
        for name in ("run_1p.sh", "run_tests.sh", "scripts/setup_env.sh", "sesemi/errors.py",
                     "sesemi/device/npu.py"):
            write(self.folder / name, (SOURCE / name).read_text())
        write(self.folder / "train_evaluate_sesemi.py", TRAINING)
        write(self.folder / "requirements.txt", " ".join(["cpu", *READY]))
        write(self.folder / "requirements-gpu.txt", " ".join(["cuda", *READY, "nvidia/cublas"]))
        write(self.folder / "tests/requirements.txt", "pytest")
        self.bin = root / "system/bin"
        write(self.bin / "uname", "#!/bin/sh\necho ${PLATFORM:-Linux x86_64}\n", 0o755)
        for command in ("bash", "cat", "dirname", "rm"):
            (self.bin / command).symlink_to(shutil.which(command))

    @property
    def venv_python(self):
        return str(self.folder / ".venv/bin/python")

    @property
    def log(self):
        """The steps of all installations so far."""
        log = self.root / "log"
        return log.read_text().splitlines() if log.exists() else []

    def add(self, *pythons, packages=()):
        for name in pythons:
            add_python(self.bin / name, *packages)

    def add_device(self, name):
        write(self.root / "dev" / name, "")

    def start(self, *flags, script="run_1p.sh", **environment):
        process = subprocess.Popen(
            [str(self.bin / "bash"), str(self.folder / script), *flags],
            cwd=str(self.root), start_new_session=True, universal_newlines=True,
            # a background job ignores SIGINT
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            env={"PATH": str(self.bin), "LOG": str(self.root / "log"),
                 "SESEMI_GPU_NODES": "dev/nvidia[0-9]* dev/libcuda.so.1",
                 "SESEMI_NPU_NODES": "dev/davinci[0-9]*", **environment},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.processes.append(process)
        return process

    def run(self, *flags, **options):
        """Start a script and wait for its end. Returns standard output, standard error and exit status."""
        process = self.start(*flags, **options)
        return (*process.communicate(), process.returncode)

    def train(self, *flags, **environment):
        """(the training script's flags, pid and environment, standard error) of a start that succeeds."""
        out, err, status = self.run(*flags, **environment)
        assert status == 0, err
        return json.loads(out), err

    def interpreter(self, **environment):
        return self.train(**environment)[0]["environment"]["INTERPRETER"]

    def start_and_wait_for(self, line, *flags, **options):
        process = self.start(*flags, **options)
        assert line + "\n" in iter(process.stderr.readline, "")
        return process


@pytest.fixture
def project(tmp_path):
    def time_is_up(*_):
        raise TimeoutError("a start hangs")

    before = signal.signal(signal.SIGALRM, time_is_up)
    signal.alarm(300)
    project = Project(tmp_path)
    yield project
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    for process in project.processes:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended, as it should
        process.communicate()


def assert_fails_with_one_sentence(result, about):
    out, err, status = result
    assert (out, status) == ("", 2)
    assert about in err and err.count("\n") == 1


# The run itself


def test_flags_and_exit_status_go_through(project):
    project.add("python3.11")
    flags = ["--data", "digits", "--name=two words", "", "*", "$HOME", "--help"]
    out, _, status = project.run(*flags, STATUS="7")
    assert status == 7
    assert json.loads(out)["flags"] == flags


def test_output_comes_at_once_and_signals_reach_the_training(project):
    project.add("python3.11")
    process = project.start("--wait")
    assert json.loads(process.stdout.readline())["pid"] == process.pid
    process.terminate()
    assert process.wait() == -signal.SIGTERM


def test_sets_ascend_and_log_variables_but_keeps_the_platforms(project):
    project.add("python3.11")
    defaults = {
        "ASCEND_GLOBAL_LOG_LEVEL": "3", "ASCEND_SLOG_PRINT_TO_STDOUT": "0",
        "ASCEND_DEVICE_ID": "0", "RANK_ID": "0", "RANK_SIZE": "1", "JOB_ID": "10087"}
    of_the_platform = {name: "9" + value for name, value in defaults.items()}
    for given, expected in (({}, defaults), (of_the_platform, of_the_platform)):
        seen = project.train(**given)[0]["environment"]
        assert {name: seen.get(name) for name in expected} == expected


@pytest.mark.parametrize("environment, rank_size", [
    ({"CM_WORKER_SIZE": "1"}, None), ({"CM_WORKER_SIZE": "1", "RANK_SIZE": "1"}, None),
    ({"CM_WORKER_SIZE": "1", "RANK_SIZE": "2"}, "2"), ({"CM_WORKER_SIZE": ""}, "1")])
def test_rank_size_1_is_not_set_beside_cm_worker_size(project, environment, rank_size):
    project.add("python3", packages=READY)
    assert project.train(**environment)[0]["environment"].get("RANK_SIZE") == rank_size


# Which interpreter runs


def test_PYTHON_is_used_before_anything_else(project):
    project.add("python3.11")
    project.train()
    chosen = project.root / "my own/bin/python"
    add_python(chosen)
    for given in str(chosen), "my own/bin/python":
        assert project.interpreter(PYTHON=given) == str(chosen)
    assert project.interpreter(PYTHON="") == project.venv_python
    assert_fails_with_one_sentence(project.run(PYTHON="/no/such/python"), "PYTHON is '/no/such/python'")


@pytest.mark.parametrize("environment, expected", [
    ({}, "python3.7"), ({"TENSORFLOW": "2"}, "python3"), ({"TENSORFLOW": "1.15"}, "python3.7")])
def test_interpreter_with_the_packages_is_used_and_leaves_no_files(project, environment, expected):
    project.add("python3", "python3.7", packages=READY)
    before = sorted(project.folder.iterdir())
    assert project.interpreter(**environment) == str(project.bin / expected)
    assert sorted(project.folder.iterdir()) == before


@pytest.mark.parametrize("packages, ready", [
    (["tensorflow", "PIL", "keras-2.15.0.dist-info"], True),        # TensorFlow 2.15
    (["tensorflow", "PIL", "keras-3.9.0.dist-info"], False),        # a later one, which needs tf_keras
    (["tensorflow", "tf_keras", "keras-3.9.0.dist-info"], False),
    (["tensorflow/left_over", *READY[1:]], False)])                 # what pip uninstall leaves
def test_interpreter_that_lacks_a_package_is_passed_over(project, packages, ready):
    project.add("python3", packages=packages)
    project.add("python3.11")
    assert project.interpreter() == (str(project.bin / "python3") if ready else project.venv_python)


@pytest.mark.parametrize("version, asked, accepted", [
    ("1.15.0", "2", False), ("1.15.0", "1.15", True), ("2.6.5", "2", True), ("2.6.5", "1.15", False)])
def test_python_3_7_has_the_tensorflow_that_its_metadata_says(project, version, asked, accepted):
    project.add("python3.7", packages=READY + ["tensorflow-%s.dist-info" % version])
    out, err, status = project.run(TENSORFLOW=asked)
    assert (status == 0 and json.loads(out)["environment"]["INTERPRETER"] == str(project.bin / "python3.7")
            and not project.log) == accepted, err


# On an Ascend host


TF1, TF2 = "tensorflow-1.15.0.dist-info", "tensorflow-2.6.5.dist-info"


@pytest.mark.parametrize("python, packages, environment, chosen", [
    ("python3.7", [TF1, "npu_bridge"], {}, True),
    ("python3.7", [TF1, "npu_bridge"], {"TENSORFLOW": "2"}, False),
    ("python3.7", [TF2, "npu_device"], {"TENSORFLOW": "2"}, True), ("python3", [TF2, "npu_device"], {}, True),
    ("python3", [TF2, "npu_bridge"], {}, False), ("python3.7", [TF1, "npu_device"], {}, False),
    ("python3", [TF2, "npu_device"], {"SESEMI_NPU_NODES": "dev/none"}, False)])
def test_interpreter_with_an_adapter_goes_before_venv(project, python, packages, environment, chosen):
    project.add("python3.11")
    assert project.interpreter() == project.venv_python
    project.add_device("davinci0")
    project.add(python, packages=READY + packages)
    expected = str(project.bin / python) if chosen else project.venv_python
    assert project.interpreter(**environment) == expected


# How .venv is made


@pytest.mark.parametrize("pythons, platform, chosen", [
    (["python3.13", "python3.12", "python3.9", "python3.10", "python3.11"], "Linux x86_64", "python3.11"),
    (["python3.13", "python3.12"], "Linux x86_64", "python3.12"),
    (["python3.11", "python3.7"], "Darwin x86_64", "python3.7"),
    (["python3.11", "python3.7"], "Linux aarch64", "python3.11")])
def test_makes_venv_from_the_best_interpreter(project, pythons, platform, chosen):
    project.add(*pythons)
    seen, err = project.train(PLATFORM=platform)
    assert seen["environment"]["INTERPRETER"] == project.venv_python
    assert project.log == INSTALLATION
    assert err.startswith("Making {} with {}, ".format(project.folder / ".venv", chosen))
    assert err.count("\n") == 1


def test_python_that_can_make_no_environment_is_passed_over(project):
    """Such are pyenv's shim for a version that is not chosen, and Debian's Python without its venv module."""
    write(project.bin / "python3.7", "#!/bin/sh\nexit 127\n", 0o755)
    write(add_python(project.bin / "python3.11") / "ensurepip.py", "raise ImportError")
    python = project.root / "home/.pyenv/versions/3.10.13/bin/python"
    add_python(python)
    assert " with {}, ".format(python) in project.train(HOME=str(project.root / "home"))[1]


@pytest.mark.parametrize("pythons, environment, about", [
    ([], {}, "install one of Python 3.7, 3.11, 3.10, 3.9, 3.12, 3.13 with"),
    (["python3.7"], {"TENSORFLOW": "2"}, "install one of Python 3.11, 3.10, 3.9, 3.12, 3.13 with"),
    (["python3.11"], {"PLATFORM": "Linux riscv64"}, "No TensorFlow is published for Linux riscv64"),
    (["python3.7"], {"PLATFORM": "Darwin arm64", "TENSORFLOW": "1.15"},
     "No TensorFlow 1.15 is published for Darwin arm64"),
    (["python3.11"], {"TENSORFLOW": "3"}, "TENSORFLOW is '3'")])
def test_nothing_to_set_up_with(project, pythons, environment, about):
    project.add(*pythons)
    assert_fails_with_one_sentence(project.run(**environment), about)


def test_venv_is_made_anew_for_the_other_tensorflow_only_on_request(project):
    project.add("python3.7", "python3.11")
    for asked, made in (({}, 1), ({"TENSORFLOW": "1.15"}, 1), ({"TENSORFLOW": "2"}, 2), ({}, 2),
                        ({"TENSORFLOW": "1.15"}, 3), ({}, 3)):
        assert project.interpreter(**asked) == project.venv_python
        assert project.log == made * INSTALLATION


# With an NVIDIA card


UNUSED = ("has no CUDA libraries, so the NVIDIA card here stays unused: "
          "TENSORFLOW=2 bash run_1p.sh installs them")


@pytest.mark.parametrize("device, environment, with_cuda", [
    ("nvidia0", {}, True), ("libcuda.so.1", {}, True), ("nvidiactl", {}, False),
    ("nvidia0", {"TENSORFLOW": "1.15"}, False), ("nvidia0", {"PLATFORM": "Linux aarch64"}, False),
    ("nvidia0", {"SESEMI_NPU_NODES": "dev/nvidia0"}, False)])
def test_venv_gets_cuda_for_a_card(project, device, environment, with_cuda):
    project.add("python3.7", "python3.11")
    project.add_device(device)
    err = project.train(**environment)[1]
    assert project.log == (WITH_CUDA if with_cuda else INSTALLATION)
    assert ("3.5 GB with CUDA" in err) == with_cuda and err.count("\n") == 1
    assert project.train(**environment)[1] == ""


def test_card_beside_python_3_7_alone(project):
    project.add("python3.7")
    project.add_device("nvidia0")
    assert UNUSED in project.train()[1] and project.log == INSTALLATION
    assert_fails_with_one_sentence(project.run(TENSORFLOW="2"), "install one of Python 3.11, ")


@pytest.mark.parametrize("cuda, base, network, used, said", [
    (True, True, True, True, ""), (False, True, True, False, "3.5 GB with CUDA"),
    (False, False, True, True, UNUSED), (False, True, False, True, UNUSED)])
def test_ready_interpreter_beside_a_card(project, cuda, base, network, used, said):
    project.add("python3", packages=READY + cuda * ["nvidia/cublas"])
    project.add(*base * ["python3.11"])
    project.add_device("nvidia0")
    seen, err = project.train(FAIL_IN="" if network else "cuda")
    expected = str(project.bin / "python3") if used else project.venv_python
    assert seen["environment"]["INTERPRETER"] == expected
    assert said in err.splitlines()[-1] if said else err == ""


def test_venv_without_cuda_is_not_silently_used_for_a_card(project):
    project.add("python3.11")
    project.train()
    project.add_device("nvidia0")
    err = project.train()[1]
    assert UNUSED in err and err.count("\n") == 1 and project.log == INSTALLATION
    project.train(TENSORFLOW="2")
    assert project.log == INSTALLATION + WITH_CUDA
    shutil.rmtree(str(project.root / "dev"))
    assert project.train()[1] == ""


def test_interrupted_installation_is_not_followed_by_a_training(project):
    """Ctrl-C also ends pip, as if it had failed, and there is an interpreter without CUDA to go on with."""
    project.add("python3", "python3.11", packages=READY)
    project.add_device("nvidia0")
    process = project.start_and_wait_for("waits", WAIT_IN="cuda")
    os.killpg(process.pid, signal.SIGINT)
    assert (process.communicate()[0], process.returncode) == ("", 130)


# A .venv that is there


def test_finished_venv_is_used_without_looking_further(project):
    project.add("python3.11")
    project.train()
    (project.bin / "python3.11").unlink()
    assert project.train()[1] == ""
    stamp = project.folder / ".venv/finished"
    stamp.write_text(stamp.read_text().replace(".venv\n", ".venv\n2\n"))      # as earlier versions wrote it
    assert project.train()[1] == ""
    assert project.log == INSTALLATION


@pytest.mark.parametrize("damage", [
    "rm .venv/finished", "echo >>requirements.txt numpy", "mv '../check out' ../moved",
    "rm .venv/bin/python",                  # as if the Python that it was made from had vanished
    "rm -r .venv/packages/tensorflow"])     # or had become another version
def test_venv_that_does_not_fit_is_made_afresh(project, damage):
    project.add("python3.11")
    project.train()
    write(project.folder / ".venv/old file", "")
    subprocess.run(damage, shell=True, cwd=str(project.folder), check=True)
    project.folder = next(path.parent for path in project.root.glob("*/run_1p.sh"))
    assert project.interpreter() == project.venv_python
    assert project.log == 2 * INSTALLATION
    assert not (project.folder / ".venv/old file").exists()


@pytest.mark.parametrize("step", INSTALLATION)
def test_installation_that_was_killed_is_redone(project, step):
    project.add("python3.11")
    process = project.start_and_wait_for("waits", WAIT_IN=step)
    os.killpg(process.pid, signal.SIGKILL)
    half_made = project.folder / ".venv/half made"
    write(half_made, "")
    project.train()
    assert project.log == INSTALLATION[:INSTALLATION.index(step) + 1] + INSTALLATION
    assert not half_made.exists()


def test_installation_that_fails(project):
    project.add("python3.11")
    out, err, status = project.run(FAIL_IN="cpu")
    _, pips_reason, sentence = err.splitlines()
    assert (out, pips_reason, status) == ("", "no network", 2)
    assert "check the network" in sentence and sentence.endswith("has the packages of requirements.txt.")
    project.train()
    assert project.log == 2 * INSTALLATION


def test_folder_that_cannot_be_written(project):
    project.add("python3.11")
    # instead of a read-only folder, into which root could write
    (project.folder / ".venv.lock").mkdir()
    out, err, status = project.run()
    assert (out, status) == ("", 2)
    assert ".venv.lock: Is a directory\nInstalling failed for the reason above: " in err


@pytest.mark.parametrize("kill_first", [False, True])
def test_starts_at_once_install_once(project, kill_first):
    project.add("python3.11")
    first = project.start_and_wait_for("waits", WAIT_IN=INSTALLATION[-1])
    second = project.start_and_wait_for("Waiting for another start, which is installing.")
    if kill_first:
        first.kill()    # only the shell: what it started goes on and must not be disturbed
    outputs = [process.communicate()[0] for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [-signal.SIGKILL if kill_first else 0, 0]
    assert json.loads(outputs[1])["environment"]["INTERPRETER"] == project.venv_python
    assert project.log == INSTALLATION


def test_training_does_not_keep_the_lock(project):
    project.add("python3.11")
    process = project.start("--wait")
    process.stdout.readline()
    (project.folder / ".venv/finished").unlink()
    project.train()
    assert project.log == 2 * INSTALLATION


def test_real_venv_is_made_and_used_again(project):
    """Its packages, which it could not get without a network, are on PYTHONPATH."""
    packages = add_python(project.root / "packages only/bin/python3.11", *READY)
    for path in packages.glob("*.py"):
        path.unlink()
    write(project.bin / "python3.11", "#!/bin/sh\nexec '{}' \"$@\"\n".format(sys.executable), 0o755)
    write(project.folder / "train_evaluate_sesemi.py", "import sys; print(sys.prefix)")
    write(project.folder / "requirements.txt", "# none")
    offline = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PYTHONPATH": str(packages)}
    out, err, status = project.run(**offline)
    assert (out, status) == (str(project.folder / ".venv") + "\n", 0), err
    assert project.run(**offline) == (out, "", 0)


# run_tests.sh


def test_tests_get_pytest_once_beside_the_trainings_packages(project):
    project.add("python3.11")
    process = project.start_and_wait_for("waits", script="run_tests.sh", WAIT_IN="pytest")
    os.killpg(process.pid, signal.SIGKILL)
    _, err, status = project.run(script="run_tests.sh", FAIL_IN="pytest")
    assert status == 2 and err.splitlines()[-1].startswith("Installing failed ")
    for _ in range(2):
        out, _, status = project.run("-k", "two words", script="run_tests.sh")
        assert out.startswith(str(project.folder) + " [")
        assert out.endswith("'--dist=loadfile', '--durations=10', '-k', 'two words']\n")
        assert status == 5
    project.train()
    assert project.log == INSTALLATION + 3 * ["pytest"]


def test_other_interpreters_are_not_given_pytest(project):
    packages = add_python(project.root / "own/bin/python")
    result = project.run(script="run_tests.sh", PYTHON="own/bin/python")
    assert_fails_with_one_sentence(result, "own/bin/python has no pytest")
    write(packages / "xdist.py", "")
    write(packages / "pytest.py", "if __name__ == '__main__': raise SystemExit(3)")
    assert project.run(script="run_tests.sh", PYTHON="own/bin/python") == ("", "", 3)
    assert project.log == []
