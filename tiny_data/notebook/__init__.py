"""The notebook's room: looks, figures, the stepper, attention maps, and what the cells call."""
