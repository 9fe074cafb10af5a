"""Makes the page of predict.py --html: images by predicted class, the least certain first."""
import os
from html import escape
from typing import NamedTuple

from sesemi.errors import escape_controls
from sesemi.record import page


class Prediction(NamedTuple):
    """Of an image. group: index of its heading; margin: between the probabilities of its two best classes."""
    path: str
    group: int
    margin: float
    caption: str


def render(model, predictions, headings, per_class, make_thumbnails):
    """The page as text.

    model: its path; predictions: a Prediction for each image; headings: of all groups; per_class: the most
    images shown of each group. make_thumbnails: from a list of paths to JPEG files as bytes, in that order;
    empty ones are left out.
    """
    groups = {}
    for image in sorted(predictions, key=lambda image: image.margin):
        groups.setdefault(image.group, []).append(image)
    shown = {group: groups[group][:per_class] for group in sorted(groups)}
    thumbnails = iter(make_thumbnails([image.path for images in shown.values() for image in images]))
    sections, tiles = [], [('Images', page.number(len(predictions)), '')]
    for group, images in shown.items():
        heading, count = text(headings[group]), len(groups[group])
        tiles.append((heading, page.number(count), ''))
        more = '<p>%s more.</p>' % page.number(count - len(images)) if count > len(images) else ''
        sections.append((heading, '<div class="images mistakes photos">\n%s</div>\n%s' % (
            ''.join(map(figure, images, thumbnails)), more)))
    top = page.tiles(tiles) + '<p>The least certain come first: their two best classes are the closest.</p>\n'
    return page.fill_frame('Classes of %s images' % page.number(len(predictions)),
                           escape_controls('By %s on' % model), top, sections)


def figure(image, thumbnail):
    """HTML of a Prediction with its thumbnail, the bytes of a JPEG file."""
    name = text(os.path.basename(image.path))
    picture = thumbnail and '<img src="%s" alt="%s">' % (page.data_uri('jpeg', thumbnail), name)
    return '<figure title="%s">%s<figcaption>%s<small>%s</small></figcaption></figure>\n' % (
        text(image.path), picture or '', text(image.caption), name)


def text(words):
    """HTML of text from elsewhere, such as the name of a file."""
    return escape(escape_controls(words))
