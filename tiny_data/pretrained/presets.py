"""The published models, by the table published.json: sizes with their sources, pixels and views."""

import json
from pathlib import Path

import video_attention as va

PUBLISHED = json.loads(Path(__file__).with_name("published.json").read_text())
PRESETS = {name: row["sizes"] for name, row in PUBLISHED["presets"].items()}
FAMILIES = PUBLISHED["families"]


def preset(name, **others):
    """A published model, untrained: preset("lvt", depth=4); others are VideoTransformer's."""
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is unknown; one of {', '.join(PRESETS)}")
    return va.VideoTransformer(**PRESETS[name] | others)
