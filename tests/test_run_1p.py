"""run_1p.sh and run_tests.sh as a user meets them: bash runs copies of them with interpreters that are made here.

The interpreters are the real Python without its site-packages. Each has a folder ``packages`` instead, in which
small modules stand for venv and pip: they install nothing, so no network is needed, but can wait or fail.
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
export PYTHONPATH="${{0%/*}}/../packages${{PYTHONPATH:+:$PYTHONPATH}}"
exec '{}' -S "$@"
""".format(sys.executable)

PACKAGES = {
    "step.py": """
        import os, sys

        def step(name):
            with open(os.environ["LOG"], "a") as log:
                log.write(name + "\\n")
            if os.environ.get("WAIT_IN") == name:
                print("waits", file=sys.stderr, flush=True)
                sys.stdin.read()
            if os.environ.get("FAIL_IN") == name:
                sys.exit("no network")
    """,
    # Like the real one it leaves what is there already, so that only a removed folder is a fresh one.
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
    "pip.py": """
        import os, sys
        from step import step

        def value(option):
            return sys.argv[sys.argv.index(option) + 1]

        if __name__ == "__main__":
            if "--target" in sys.argv:
                os.makedirs(value("--target"))
            step(open(value("-r")).read().split()[0] if "-r" in sys.argv else "pip itself")
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

# What setting up logs: the fake pip writes the first word of the requirements file that it is given.
INSTALLATION = ["venv", "pip itself", "tensorflow"]


def write(path, text, mode=0o644):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    path.chmod(mode)


def add_python(path):
    """Makes an interpreter at path, which is in a folder bin, and returns the folder of its packages."""
    write(path, INTERPRETER, 0o755)
    packages = path.parent.parent / "packages"
    for name, text in PACKAGES.items():
        write(packages / name, text)
    return packages


class Project:
    """A checkout in a folder with a space, on a system with few commands: no git, no flock and no HOME."""

    def __init__(self, root):
        self.root = root
        self.folder = root / "check out"
        self.processes = []
        for name in ("run_1p.sh", "run_tests.sh", "scripts/setup_env.sh"):
            write(self.folder / name, (SOURCE / name).read_text())
        write(self.folder / "train_evaluate_sesemi.py", TRAINING)
        write(self.folder / "requirements.txt", "tensorflow")
        write(self.folder / "requirements-gpu.txt", "cuda")
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

    def start(self, *flags, script="run_1p.sh", **environment):
        process = subprocess.Popen(
            [str(self.bin / "bash"), str(self.folder / script), *flags],
            cwd=str(self.root), start_new_session=True, universal_newlines=True,
            env={"PATH": str(self.bin), "LOG": str(self.root / "log"), "SESEMI_GPU_NODES": "dev/nvidia[0-9]* dev/libcuda.so.1",
                 "SESEMI_NPU_NODES": "dev/davinci[0-9]*", **environment},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.processes.append(process)
        return process

    def add_devices(self, *names):
        for name in names:
            write(self.root / "dev" / name, "")

    def run(self, *flags, **options):
        """Starts, waits for the end and returns the exit status, standard output and standard error."""
        process = self.start(*flags, **options)
        return (*process.communicate(), process.returncode)

    def train(self, *flags, **environment):
        """What the training script, which must have run well, saw."""
        out, err, status = self.run(*flags, **environment)
        assert status == 0, err
        return json.loads(out)

    def interpreter(self, **environment):
        return self.train(**environment)["environment"]["INTERPRETER"]

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
            pass  # It has ended, as it should.
        process.communicate()


def assert_fails_with_one_sentence(result, about):
    out, err, status = result
    assert (out, status) == ("", 2)
    assert about in err and err.count("\n") == 1


# The run itself


def test_flags_and_exit_status_go_through(project):
    add_python(project.bin / "python3.11")
    flags = ["--data", "digits", "--name=two words", "", "*", "$HOME", "--help"]
    out, _, status = project.run(*flags, STATUS="7")
    assert status == 7
    assert json.loads(out)["flags"] == flags


def test_output_comes_at_once_and_signals_reach_the_training(project):
    add_python(project.bin / "python3.11")
    process = project.start("--wait")
    assert json.loads(process.stdout.readline())["pid"] == process.pid
    process.terminate()
    assert process.wait() == -signal.SIGTERM


def test_sets_ascend_and_log_variables_but_keeps_the_platforms(project):
    add_python(project.bin / "python3.11")
    defaults = {
        "ASCEND_GLOBAL_LOG_LEVEL": "3", "ASCEND_SLOG_PRINT_TO_STDOUT": "0",
        "ASCEND_DEVICE_ID": "0", "RANK_ID": "0", "RANK_SIZE": "1", "JOB_ID": "10087"}
    of_the_platform = {name: "9" + value for name, value in defaults.items()}
    for given, expected in (({}, defaults), (of_the_platform, of_the_platform)):
        seen = project.train(**given)["environment"]
        assert {name: seen.get(name) for name in expected} == expected


# Which interpreter runs


def test_PYTHON_is_used_before_anything_else(project):
    add_python(project.bin / "python3.11")
    project.train()
    chosen = project.root / "my own/bin/python"
    add_python(chosen)
    assert project.interpreter(PYTHON=str(chosen)) == str(chosen)
    assert project.interpreter(PYTHON="") == project.venv_python


def test_PYTHON_that_cannot_be_run(project):
    add_python(project.bin / "python3.11")
    assert_fails_with_one_sentence(project.run(PYTHON="/no/such/python"), "PYTHON is '/no/such/python'")


@pytest.mark.parametrize("names, expected", [
    (["python3"], "python3"), (["python3.7"], "python3.7"), (["python3", "python3.7"], "python3.7")])
def test_interpreter_with_the_packages_is_used_without_a_trace(project, names, expected):
    for name in names:
        packages = add_python(project.bin / name)
    for name in ("tensorflow", "numpy", "PIL", "tf_keras"):
        write(packages / name / "__init__.py", "raise AssertionError('takes seconds to import')")
    write(packages / "keras-3.9.0.dist-info/METADATA", "Name: keras\nVersion: 3.9.0\n")
    before = sorted(project.folder.iterdir())
    assert project.interpreter() == str(project.bin / expected)
    assert sorted(project.folder.iterdir()) == before


@pytest.mark.skipif(sys.version_info < (3, 8), reason="TensorFlow for Python 3.7 has its own Keras 2")
@pytest.mark.parametrize("keras, ready", [("2.15.0", True), ("3.9.0", False)])
def test_tf_keras_is_needed_beside_keras_3(project, keras, ready):
    packages = add_python(project.bin / "python3")
    for name in ("tensorflow", "numpy", "PIL"):
        write(packages / name / "__init__.py", "")
    write(packages / "keras-{}.dist-info/METADATA".format(keras), "Name: keras\nVersion: {}\n".format(keras))
    add_python(project.bin / "python3.11")
    assert project.interpreter() == (str(project.bin / "python3") if ready else project.venv_python)


def test_empty_folder_of_the_name_is_no_package(project):
    packages = add_python(project.bin / "python3")
    for name in ("numpy", "PIL"):
        write(packages / name / "__init__.py", "")
    write(packages / "keras-2.15.0.dist-info/METADATA", "Name: keras\nVersion: 2.15.0\n")
    write(packages / "tensorflow/left over.txt", "")
    add_python(project.bin / "python3.11")
    assert project.interpreter() == project.venv_python


# How .venv is made


@pytest.mark.parametrize("pythons, environment, chosen", [
    (["python3.13", "python3.12", "python3.9", "python3.10", "python3.11"], {}, "python3.11"),
    (["python3.13", "python3.12", "python3.9", "python3.10"], {}, "python3.10"),
    (["python3.13", "python3.12"], {}, "python3.12"),
    (["python3.11", "python3.7"], {}, "python3.7"),
    (["python3.11", "python3.7"], {"TENSORFLOW": "2"}, "python3.11"),
    (["python3.11", "python3.7"], {"TENSORFLOW": "1.15"}, "python3.7"),
    (["python3.11", "python3.7"], {"PLATFORM": "Linux aarch64"}, "python3.11"),
    (["python3.13", "python3.7"], {"PLATFORM": "Darwin arm64"}, "python3.13"),
    (["python3.13", "python3.12"], {"PLATFORM": "Darwin x86_64"}, "python3.12"),
    (["python3.12", "python3.7"], {"PLATFORM": "Darwin x86_64"}, "python3.7"),
])
def test_makes_venv_from_the_best_interpreter(project, pythons, environment, chosen):
    for name in pythons:
        add_python(project.bin / name)
    out, err, status = project.run(**environment)
    assert status == 0
    assert json.loads(out)["environment"]["INTERPRETER"] == project.venv_python
    assert project.log == INSTALLATION
    assert err.startswith("Making {} with {}: ".format(project.folder / ".venv", chosen)) and err.count("\n") == 1


@pytest.mark.parametrize("variable, folder", [("PYENV_ROOT", "pyenv"), ("HOME", "home/.pyenv")])
def test_finds_pyenvs_version_behind_a_shim_that_fails(project, variable, folder):
    write(project.bin / "python3.7", "#!/bin/sh\nexit 127\n", 0o755)
    add_python(project.bin / "python3.11")
    python = project.root / folder / "versions/3.7.16/bin/python"
    add_python(python)
    _, err, status = project.run(**{variable: str(project.root / folder.split("/")[0])})
    assert status == 0 and " with {}: ".format(python) in err


def test_passes_over_python_without_ensurepip(project):
    debian = project.root / "debian"
    add_python(debian / "bin/python3.11")
    write(debian / "packages/ensurepip.py", "raise ImportError")
    add_python(project.bin / "python3.12")
    _, err, status = project.run(PATH="{}/bin:{}".format(debian, project.bin))
    assert status == 0 and " with python3.12: " in err


@pytest.mark.parametrize("pythons, environment, about", [
    ([], {}, "install one of Python 3.7, 3.11, 3.10, 3.9, 3.12, 3.13 with"),
    (["python3.7"], {"TENSORFLOW": "2"}, "install one of Python 3.11, 3.10, 3.9, 3.12, 3.13 with"),
    (["python3.7"], {"PLATFORM": "Darwin arm64"}, "install one of Python 3.11, 3.10, 3.9, 3.12, 3.13 with"),
    (["python3.13"], {"PLATFORM": "Darwin x86_64"}, "install one of Python 3.7, 3.11, 3.10, 3.9, 3.12 with"),
    (["python3.11"], {"PLATFORM": "Linux riscv64"}, "No TensorFlow is published for this machine (Linux riscv64)"),
    (["python3.11", "python3.7"], {"PLATFORM": "Linux aarch64", "TENSORFLOW": "1.15"}, "published for x86-64 alone"),
    (["python3.11"], {"TENSORFLOW": "3"}, "TENSORFLOW is '3'"),
])
def test_nothing_to_set_up_with(project, pythons, environment, about):
    for name in pythons:
        add_python(project.bin / name)
    assert_fails_with_one_sentence(project.run(**environment), about)


def test_tells_of_tensorflow_2_where_both_could_be_had(project):
    add_python(project.bin / "python3.7")
    assert "TENSORFLOW=2" not in project.run()[1]
    lose_the_stamp(project)
    add_python(project.bin / "python3.12")
    assert "gets TensorFlow 1.15; TensorFlow 2 is 1.5 to 2 times faster" in project.run()[1]


def test_venv_is_made_anew_for_the_other_tensorflow_only_when_asked(project):
    for name in ("python3.7", "python3.11"):
        add_python(project.bin / name)
    for asked, made in (({}, 1), ({"TENSORFLOW": "1.15"}, 1), ({"TENSORFLOW": "2"}, 2), ({}, 2), ({"TENSORFLOW": "1.15"}, 3), ({}, 3)):
        assert project.interpreter(**asked) == project.venv_python
        assert project.log == made * INSTALLATION


# With an NVIDIA card


WITH_CUDA = ["venv", "pip itself", "cuda"]


@pytest.mark.parametrize("pythons, devices, environment, chosen, installed, about", [
    (["python3.7", "python3.12", "python3.11"], ["nvidia0"], {}, "python3.11", WITH_CUDA, "download of 3.5 GB (for TensorFlow 1.15, "),
    (["python3.7", "python3.13"], ["dxg", "libcuda.so.1"], {}, "python3.13", WITH_CUDA, "TENSORFLOW=1.15 bash run_1p.sh"),
    (["python3.7", "python3.11"], ["nvidia1"], {"TENSORFLOW": "2"}, "python3.11", WITH_CUDA, "3.5 GB"),
    (["python3.7", "python3.11"], ["nvidia1"], {"TENSORFLOW": "1.15"}, "python3.7", INSTALLATION, "needs CUDA 10.0"),
    (["python3.7"], ["nvidia0"], {}, "python3.7", INSTALLATION, "TensorFlow 2 with CUDA needs Python 3.9 to 3.13"),
    (["python3.7", "python3.11"], ["nvidiactl", "dxg"], {}, "python3.7", INSTALLATION, "on a CPU"),
    (["python3.7", "python3.11"], ["nvidia0", "davinci0"], {}, "python3.7", INSTALLATION, "it is the first found"),
    (["python3.11"], ["davinci0"], {"PLATFORM": "Linux aarch64"}, "python3.11", INSTALLATION, "to use the Ascend NPU here install"),
    (["python3.11"], ["nvidia0"], {"PLATFORM": "Linux aarch64"}, "python3.11", INSTALLATION, "none with CUDA is published for Linux aarch64"),
])
def test_venv_gets_cuda_for_a_card(project, pythons, devices, environment, chosen, installed, about):
    for name in pythons:
        add_python(project.bin / name)
    project.add_devices(*devices)
    out, err, status = project.run(**environment)
    assert status == 0 and json.loads(out)["environment"]["INTERPRETER"] == project.venv_python
    assert project.log == installed
    assert err.startswith("Making {} with {}: ".format(project.folder / ".venv", chosen)) and about in err and err.count("\n") == 1


def add_packages(packages, cuda):
    for name in ("tensorflow", "numpy", "PIL", "tf_keras"):
        write(packages / name / "__init__.py", "")
    if cuda:
        write(packages / "nvidia/some_part/lib" / ("libcublas.so.12" if sys.version_info >= (3, 8) else "libcudnn.so.7"), "")


@pytest.mark.parametrize("cuda, others, expected", [
    (True, ["python3.11"], "python3"), (False, ["python3.11"], None), (False, [], "python3")])
def test_interpreter_whose_packages_lack_cuda_is_passed_over_for_a_card(project, cuda, others, expected):
    add_packages(add_python(project.bin / "python3"), cuda)
    for name in others:
        add_python(project.bin / name)
    project.add_devices("nvidia0")
    assert project.interpreter() == (str(project.bin / expected) if expected else project.venv_python)


def test_venv_without_cuda_is_not_silently_used_for_a_card(project):
    add_python(project.bin / "python3.11")
    project.train()
    project.add_devices("nvidia0")
    _, err, status = project.run()
    assert status == 0 and project.log == INSTALLATION
    assert "has no CUDA libraries" in err and "TENSORFLOW=2 bash run_1p.sh" in err and err.count("\n") == 1
    _, err, status = project.run(TENSORFLOW="2")
    assert status == 0 and project.log == INSTALLATION + WITH_CUDA


def test_venv_with_cuda_is_used_in_silence(project):
    add_python(project.bin / "python3.11")
    project.add_devices("nvidia0")
    project.train()
    add_packages(project.folder / ".venv/packages", cuda=True)
    assert project.run()[1:] == ("", 0)
    shutil.rmtree(str(project.root / "dev"))
    assert project.run()[1:] == ("", 0)
    change_the_requirements(project)        # of all, which those for a card include
    project.train()
    assert project.log == WITH_CUDA + INSTALLATION


def test_finished_venv_is_used_without_looking_further(project):
    add_python(project.bin / "python3.11")
    project.train()
    (project.bin / "python3.11").unlink()
    _, err, status = project.run()
    assert (err, status) == ("", 0)
    assert project.log == INSTALLATION


def lose_the_stamp(project):
    (project.folder / ".venv/finished").unlink()


def change_the_requirements(project):
    write(project.folder / "requirements.txt", "tensorflow numpy")


def move_the_folder(project):
    moved = project.root / "moved"
    project.folder.rename(moved)
    project.folder = moved


def lose_the_base_interpreter(project):
    Path(project.venv_python).unlink()


def change_the_base_interpreters_version(project):
    (project.folder / ".venv/packages/pip.py").unlink()


@pytest.mark.parametrize("damage", [
    lose_the_stamp, change_the_requirements, move_the_folder, lose_the_base_interpreter,
    change_the_base_interpreters_version])
def test_venv_that_does_not_fit_is_made_afresh(project, damage):
    add_python(project.bin / "python3.11")
    project.train()
    damage(project)
    old_file = project.folder / ".venv/old file"
    write(old_file, "")
    assert project.interpreter() == project.venv_python
    assert project.log == 2 * INSTALLATION
    assert not old_file.exists()


@pytest.mark.parametrize("step", INSTALLATION)
def test_installation_that_was_killed_is_redone(project, step):
    add_python(project.bin / "python3.11")
    process = project.start_and_wait_for("waits", WAIT_IN=step)
    os.killpg(process.pid, signal.SIGKILL)
    half_made = project.folder / ".venv/half made"
    write(half_made, "")
    project.train()
    assert project.log == INSTALLATION[:INSTALLATION.index(step) + 1] + INSTALLATION
    assert not half_made.exists()


@pytest.mark.parametrize("step", INSTALLATION)
def test_installation_that_fails(project, step):
    add_python(project.bin / "python3.11")
    out, err, status = project.run(FAIL_IN=step)
    _, pips_reason, sentence = err.splitlines()
    assert (out, pips_reason, status) == ("", "no network", 2)
    assert sentence.startswith("Installing the packages of ") and "check the network" in sentence
    project.train()
    assert project.log[-3:] == INSTALLATION


def test_folder_that_cannot_be_written(project):
    add_python(project.bin / "python3.11")
    (project.folder / ".venv.lock").mkdir()  # Stands for a read-only folder, into which root can write all the same.
    assert_fails_with_one_sentence(project.run(), "make the folder writable")


@pytest.mark.parametrize("kill_first", [False, True])
def test_starts_at_once_install_once(project, kill_first):
    add_python(project.bin / "python3.11")
    first = project.start_and_wait_for("waits", WAIT_IN=INSTALLATION[-1])
    second = project.start_and_wait_for("Waiting for another start, which is installing.")
    if kill_first:
        first.kill()  # The shell alone: what it started goes on, and must not be disturbed.
    outputs = [process.communicate()[0] for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [-signal.SIGKILL if kill_first else 0, 0]
    assert json.loads(outputs[1])["environment"]["INTERPRETER"] == project.venv_python
    assert project.log == INSTALLATION


def test_training_does_not_keep_the_lock(project):
    add_python(project.bin / "python3.11")
    process = project.start("--wait")
    process.stdout.readline()
    lose_the_stamp(project)
    project.train()
    assert project.log == 2 * INSTALLATION


def test_real_venv_is_made_and_used_again(project):
    write(project.bin / "python3.11", "#!/bin/sh\nexec '{}' \"$@\"\n".format(sys.executable), 0o755)
    write(project.folder / "train_evaluate_sesemi.py", "import sys; print(sys.prefix)")
    write(project.folder / "requirements.txt", "")
    expected = str(project.folder / ".venv") + "\n"
    offline = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    out, err, status = project.run(**offline)
    assert (out, status) == (expected, 0), err
    assert project.run(**offline) == (expected, "", 0)


# run_tests.sh


def test_tests_get_pytest_once_beside_the_trainings_packages(project):
    add_python(project.bin / "python3.11")
    for _ in range(2):
        out, _, status = project.run("-k", "two words", script="run_tests.sh")
        assert out.startswith(str(project.folder) + " [")
        assert out.endswith("'--dist=loadfile', '--durations=10', '-k', 'two words']\n")
        assert status == 5
    project.train()
    assert project.log == INSTALLATION + ["pytest"]


def test_installation_of_pytest_that_was_killed_is_redone(project):
    add_python(project.bin / "python3.11")
    process = project.start_and_wait_for("waits", script="run_tests.sh", WAIT_IN="pytest")
    os.killpg(process.pid, signal.SIGKILL)
    assert project.run(script="run_tests.sh")[2] == 5
    assert project.log == INSTALLATION + ["pytest", "pytest"]


def test_installation_of_pytest_that_fails_leaves_the_training_alone(project):
    add_python(project.bin / "python3.11")
    _, err, status = project.run(script="run_tests.sh", FAIL_IN="pytest")
    assert status == 2 and "tests/requirements.txt failed" in err.splitlines()[-1]
    project.train()
    assert project.log == INSTALLATION + ["pytest"]


def test_other_interpreters_are_not_given_pytest(project):
    packages = add_python(project.root / "own/bin/python")
    result = project.run(script="run_tests.sh", PYTHON="own/bin/python")
    assert_fails_with_one_sentence(result, "own/bin/python has no pytest")
    write(packages / "xdist.py", "")
    write(packages / "pytest.py", "if __name__ == '__main__': raise SystemExit(3)")
    assert project.run(script="run_tests.sh", PYTHON="own/bin/python") == ("", "", 3)
    assert project.log == []
