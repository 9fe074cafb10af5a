"""Draws the picture in the READMEs, an image in its six proxy views:

    python benchmarks/proxy_views.py benchmarks/proxy_views.png
"""
import os
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from sesemi.data.batches import PROXY_TRANSFORMS, make_proxy_views  # noqa: E402

SIZE, GAP, TEXT = 128, 16, 22      # pixels


def scene():
    """A house with the sun to its left, so that all six views differ: uint8 (1, SIZE, SIZE, 3)."""
    image = Image.new('RGB', (SIZE, SIZE), '#a9d0f5')
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 98, SIZE, SIZE), fill='#6aa84f')
    draw.ellipse((10, 10, 38, 38), fill='#f6c744')
    draw.rectangle((44, 58, 108, 104), fill='#e8dcc8')
    draw.polygon(((36, 58), (76, 24), (116, 58)), fill='#b5483a')
    draw.rectangle((86, 74, 100, 104), fill='#6b4a2f')
    draw.rectangle((52, 68, 72, 84), fill='#4a7fb0')
    return np.asarray(image)[None]


def main(path):
    """Draw the picture to the file `path`."""
    views, labels = make_proxy_views(scene())
    sheet = Image.new('RGB', (len(views) * (SIZE + GAP) + GAP, SIZE + 2 * GAP + TEXT), 'white')
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for column, (view, label) in enumerate(zip(views, labels)):
        left = GAP + column * (SIZE + GAP)
        sheet.paste(Image.fromarray(view), (left, GAP))
        draw.text((left, SIZE + GAP + 8), '%d: %s' % (label, PROXY_TRANSFORMS[label][0]),
                  fill='black', font=font)
    sheet.save(path, optimize=True)


if __name__ == '__main__':
    main(*sys.argv[1:])
