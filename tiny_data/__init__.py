"""The synthetic moving-object data set, its committed file, and the golden tensors that the tests use."""

from .generator import CLASSES, Clips, image_path_ceiling, moving_objects

__all__ = ["CLASSES", "Clips", "image_path_ceiling", "moving_objects"]
