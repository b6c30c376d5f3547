"""What surrounds video_attention.py, by rooms; README.md beside this file is their map."""

import video_attention

from .moving_objects import CLASSES, Clips, image_path_ceiling, moving_objects, path_tells

SCHEMES = tuple(video_attention.ATTENTION)  # the rows of the file, before other rooms add theirs

__all__ = ["CLASSES", "SCHEMES", "Clips", "image_path_ceiling", "moving_objects", "path_tells"]
