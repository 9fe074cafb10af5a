"""Which module may import which, and that the code's checksum, which ranks compare, covers every module."""
import ast
import shutil
import sys

from conftest import PROJECT
from programs import run

from sesemi.record import identity

PROGRAMS = {'train_evaluate_sesemi', 'predict', 'report', 'export', 'boot_modelarts', 'help_modelarts'}
FILES = [path for pattern in ('*.py', 'networks/**/*.py', 'sesemi/**/*.py')
         for path in sorted(PROJECT.glob(pattern))]
MODULES = {'.'.join(path.relative_to(PROJECT).with_suffix('').parts).replace('.__init__', ''): path
           for path in FILES}


def imported(path):
    """Every module or name that a file imports, with dots."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {'%s.%s' % (node.module, alias.name) for alias in node.names}
    return names


def module_of(name):
    """The project's module that an imported name is or comes from; None if another package's."""
    while name and name not in MODULES:
        name = name.rpartition('.')[0]
    return name or None


USES = {module: {module_of(name) for name in imported(path)} - {None, module}
        for module, path in MODULES.items()}


# Each room of modules, and the rooms that it may import.
LOW = {'settings', 'errors'}
ROOMS = {
    'settings': set(),
    'errors': set(),
    'system': {'errors'},
    'flags': LOW | {'system'},
    'images': LOW | {'system'},
    'utils': LOW | {'system', 'images'},
    'data': LOW | {'system', 'images', 'utils'},
    'device': LOW | {'system'},
    'networks': LOW | {'device'},       # only TensorFlow's names
    'training': LOW | {'system', 'utils', 'data', 'device', 'networks'},
    'record': LOW | {'system', 'flags', 'device'},
}


def room(module):
    """The room of a module: its folder or file in sesemi; outside that networks, utils or a program."""
    return module.split('.')[1] if module.startswith('sesemi.') else module.split('.')[0]


def test_rooms_import_only_rooms_below_them_and_programs_import_only_rooms():
    below = set()
    for name, uses in ROOMS.items():
        assert uses <= below, name      # so rooms have no circle
        below.add(name)
    rooms = {room(module) for module in MODULES} - {'sesemi'}
    assert rooms == set(ROOMS) | PROGRAMS
    for module, uses in USES.items():
        for used in uses - {'sesemi'}:
            beside = {'help_modelarts'} if module == 'boot_modelarts' else set()
            allowed = ROOMS.get(room(module), set(ROOMS) | beside)
            assert room(used) in allowed | {room(module)}, '%s imports %s' % (module, used)


def test_modules_have_no_circle():
    def reached(module, path):
        assert module not in path, ' -> '.join(path + (module,))
        for used in USES[module]:
            reached(used, path + (module,))
    for module in MODULES:
        reached(module, ())


def test_networks_import_little_beside_tensorflow():
    code = ('import sys, networks\n'
            "print(*sorted(name for name in sys.modules if name.split('.')[0] == 'sesemi'))")
    done = run(sys.executable, '-c', code, cwd=PROJECT)
    assert done.out.split() == ['sesemi', 'sesemi.device', 'sesemi.device.backend', 'sesemi.device.npu',
                                'sesemi.errors', 'sesemi.settings']


def test_one_file_imports_tensorflow_and_only_what_is_public():
    for module, path in MODULES.items():
        names = {name for name in imported(path) if name.split('.')[0] in ('tensorflow', 'keras', 'tf_keras')}
        public = {'tensorflow.compat.v1', 'tensorflow.compat.v1.keras'}
        assert names == (public if module == 'sesemi.device.backend' else set()), module


def test_a_change_to_any_file_of_a_run_changes_the_checksum_of_the_code(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, 'PROJECT', str(tmp_path))
    for path in FILES:
        copy = tmp_path / path.relative_to(PROJECT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(path), str(copy))
    before = identity.code_checksum()
    for path in FILES:
        copy = tmp_path / path.relative_to(PROJECT)
        copy.write_bytes(copy.read_bytes() + b'#')
        assert identity.code_checksum() != before, path
        copy.write_bytes(copy.read_bytes()[:-1])
    assert identity.code_checksum() == before
