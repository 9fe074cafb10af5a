"""Which module may use which, read from the import statements wherever in a file they stand; and that ranks compare all of them."""
import ast
import shutil

from conftest import PROJECT

from sesemi.record import identity

PROGRAMS = {'train_evaluate_sesemi', 'predict', 'report', 'export_pb', 'boot_modelarts', 'help_modelarts'}
FILES = [path for pattern in ('*.py', 'networks/**/*.py', 'sesemi/**/*.py') for path in sorted(PROJECT.glob(pattern))]
MODULES = {'.'.join(path.relative_to(PROJECT).with_suffix('').parts).replace('.__init__', ''): path for path in FILES}


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


USES = {module: {module_of(name) for name in imported(path)} - {None, module} for module, path in MODULES.items()}


def test_there_is_no_circle():
    def reached(module, path):
        assert module not in path, ' -> '.join(path + (module,))
        for used in USES[module]:
            reached(used, path + (module,))
    for module in MODULES:
        reached(module, ())


def test_the_root_holds_the_programs_and_utils_and_no_module_uses_a_program():
    assert {path.stem for path in PROJECT.glob('*.py')} == PROGRAMS | {'utils'}
    for module, uses in USES.items():
        assert module in PROGRAMS or not uses & PROGRAMS, module
        if module.startswith('networks'):
            assert {used for used in uses if not used.startswith('networks')} <= {'sesemi.device.runtime', 'sesemi.settings'}, module
    assert USES['utils'] <= {'sesemi.' + name for name in ('decoding', 'errors', 'folders', 'machine', 'pools', 'settings')}


def test_one_file_imports_tensorflow_and_only_what_is_public():
    for module, path in MODULES.items():
        names = {name for name in imported(path) if name.split('.')[0] in ('tensorflow', 'keras', 'tf_keras')}
        assert names == ({'tensorflow.compat.v1', 'tensorflow.compat.v1.keras'} if module == 'sesemi.device.runtime' else set()), module


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
