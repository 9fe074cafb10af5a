"""Network in Network: 1,008,512 parameters for RGB images."""
from networks.layers import Layers, chain


def trunk(dropout=0.0, seed=0, batch_number=None):
    """A function from images (n, 32, 32, 3) to features (n, 8, 8, 192); all its calls share the weights."""
    make = Layers(slope=0.0, use_bias=True, seed=seed, batch_number=batch_number)
    return chain(
        make.conv_norm(192, 5), make.conv_norm(160, 1), make.conv_norm(96, 1),
        make.pool(), make.dropout(dropout),
        make.conv_norm(192, 5), make.conv_norm(192, 1), make.conv_norm(192, 1),
        make.pool(), make.dropout(dropout),
        make.conv_norm(192, 3), make.conv_norm(192, 1), make.conv_norm(192, 1))
