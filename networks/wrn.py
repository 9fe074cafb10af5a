"""Wide residual network WRN-28-2 with max-pooling, not strides: 1,469,936 parameters for RGB images."""
from networks.layers import Layers, chain, residual


def trunk(dropout=0.0, seed=0, batch_number=None):
    """A function from images (n, 32, 32, 3) to features (n, 8, 8, 128); all its calls share the weights."""
    make = Layers(slope=0.0, use_bias=False, seed=seed, batch_number=batch_number)

    def expand(width):
        return residual(chain(make.conv_norm(width, 3), make.conv(width, 3)), shortcut=make.conv(width, 1))

    def blocks(width):
        return chain(*[residual(chain(make.norm(), make.conv(width, 3), make.dropout(dropout), make.norm(),
                                      make.conv(width, 3)))
                       for _ in range(3)])

    return chain(
        make.conv_norm(16, 3),
        expand(32), blocks(32), make.norm(),
        expand(64), make.pool(), blocks(64), make.norm(),
        expand(128), make.pool(), blocks(128), make.norm())
