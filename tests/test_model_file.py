"""Files that are not models of this program are refused before Keras can run code that they hold."""
import fcntl
import json

import h5py
import pytest

from sesemi.errors import InputError
from sesemi.training import model_file

CODE = {'function': ['4wEAAAAA', None, None], 'function_type': 'lambda'}
OBJECT = {'class_name': 'Lambda', 'config': CODE, '__passive_serialization__': True}
METADATA = {'class_names': ['cat', 'dog'], 'fit': 'pad'}


def layer(kind, name, source=None, call=None, **settings):
    return {'class_name': kind, 'name': name, 'config': dict(settings, name=name),
            'inbound_nodes': [[[source, 0, 0, call or {}]]] if source else []}


def dense(**changes):
    settings = {'units': 2, 'activation': 'softmax', 'use_bias': True}
    return layer('Dense', 'clf', 'flat', **dict(settings, **changes))


def write(path, *layers, metadata=METADATA):
    """Write a model file of an image input and these layers, by default those of a right one."""
    layers = layers or (layer('Flatten', 'flat', 'image'), dense())
    image = layer('InputLayer', 'image', batch_input_shape=[None, 4, 4, 3])
    with h5py.File(str(path), 'w') as file:
        file.attrs['model_config'] = json.dumps({'config': {'layers': [image, *layers]}}).encode()
        file.attrs['sesemi'] = json.dumps(metadata).encode()
    return str(path)


def refused(path):
    with pytest.raises(InputError) as error:
        model_file.read_metadata(path)
    said = str(error.value)
    assert said.startswith(path + ': not a model saved by this program (')
    assert '\n' not in said and len(said) < 500
    return said


def test_a_file_of_the_right_form(tmp_path):
    assert model_file.read_metadata(write(tmp_path / 'a.h5')) == METADATA


def test_a_file_that_cannot_be_locked(tmp_path):
    """As on a file system without locks: here another descriptor holds the lock that HDF5 takes."""
    path = write(tmp_path / 'a.h5')
    with open(path) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OSError, match='unable to lock file'):
            h5py.File(path, 'r')
        assert model_file.read_metadata(path) == METADATA


@pytest.mark.parametrize('kind, settings', [
    ('Lambda', CODE), ('TFOpLambda', {'function': 'io.write_file'}), ('Model', {'layers': []})])
def test_layers_of_other_kinds(tmp_path, kind, settings):
    said = refused(write(tmp_path / 'a.h5', layer(kind, 'flat', 'image', **settings), dense()))
    assert 'a layer of the kind %r' % kind in said


@pytest.mark.parametrize('odd', [
    dense(activation='lambda x: x'), dense(activation=OBJECT), dense(units=OBJECT),
    dense(kernel_initializer='zeros'), dict(dense(), module='os'),
    layer('Flatten', 'flat', 'image', call={'mask': OBJECT})])
def test_settings_and_calls_that_name_code(tmp_path, odd):
    assert 'the layer ' in refused(write(tmp_path / 'a.h5', odd))


@pytest.mark.parametrize('metadata', [{}, dict(METADATA, fit='zoom'), dict(METADATA, class_names=[])])
def test_metadata_of_another_form(tmp_path, metadata):
    refused(write(tmp_path / 'a.h5', metadata=metadata))


def test_files_of_another_form(tmp_path):
    with open(write(tmp_path / 'a.h5'), 'rb') as file:
        whole = file.read()
    for content in b'', b'no h5', whole[:100], whole[:len(whole) // 2], whole[:-1]:
        (tmp_path / 'a.h5').write_bytes(content)
        refused(str(tmp_path / 'a.h5'))
