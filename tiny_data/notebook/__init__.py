"""The notebook's room: looks, figures, the stepper, attention maps, and what the cells call."""

from .showing import show

__all__ = ["show"]
