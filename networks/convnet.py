"""The 13-layer ConvNet of Temporal Ensembling and Mean Teacher: 3,126,656 parameters for RGB images."""
from networks.layers import Layers, chain


def trunk(dropout=0.0, seed=0, batch_number=None):
    """A function from images (n, 32, 32, 3) to features (n, 6, 6, 128); all its calls share the weights."""
    make = Layers(slope=0.1, use_bias=True, seed=seed, batch_number=batch_number)
    return chain(
        make.conv_norm(128, 3), make.conv_norm(128, 3), make.conv_norm(128, 3),
        make.pool(), make.dropout(dropout),
        make.conv_norm(256, 3), make.conv_norm(256, 3), make.conv_norm(256, 3),
        make.pool(), make.dropout(dropout),
        make.conv_norm(512, 3, padding='valid'), make.conv_norm(256, 1), make.conv_norm(128, 1))
