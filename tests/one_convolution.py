"""A trunk of one convolution, for tests of other things. Copies of the project have it as networks/nin.py."""
from networks.layers import Layers, chain


def trunk(dropout=0.0, seed=0, batch_number=None):
    make = Layers(slope=0.1, use_bias=True, seed=seed, batch_number=batch_number)
    return chain(make.conv_norm(4, 3), make.pool(), make.dropout(dropout))
