"""Published models: sizes, weights, a start from an image transformer, own clips; see README.md.

Import it before a saved model of a release is built again: it adds the rows of quirks.ROWS.
"""

from . import quirks
from .image import load_image_weights
from .quirks import ReleasedTransformer
from .released import PRESETS, from_released, preset

__all__ = ["PRESETS", "ReleasedTransformer", "from_released", "load_image_weights", "preset"]
__all__ += ["quirks"]
