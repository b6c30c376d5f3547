"""What surrounds video_attention.py: the moving-object data set, studies, weights and tools."""

from .generator import CLASSES, Clips, image_path_ceiling, moving_objects, path_tells

__all__ = ["CLASSES", "Clips", "image_path_ceiling", "moving_objects", "path_tells"]
