"""What a model of your own attends to, on frames of your own."""

from pathlib import Path

from . import attention_maps, figures


def show(model, video, query, path="attention.png", blocks=(-1,)):
    """Save a picture of what the patch `query` (t, y, x) takes from each patch of the first clip of
    a video (B, 3, frames, height, width): a row for each step of these blocks -> Picture.

    Each row is the mean over the heads; "2.1 time" is step 1 of block 2. All are counted from 0,
    tubelets as one frame. blocks=range(12) draws twelve, and the last without it.
    """
    grid, (frames, patch, _) = model.patches.grid(video.shape[2:]), model.patches.proj.stride
    entered, rows = attention_maps.inputs_of_steps(model, video[:1]), {}
    for i in (block % len(entered) for block in blocks):
        for j, (step, inputs) in enumerate(zip(model.blocks[i].steps, entered[i])):
            name = getattr(step.function, "__name__", type(step).__name__).replace("_attention", "")
            taken = attention_maps.attention_map(step, *inputs, query)[0].mean(dim=0)  # (C + T*S,)
            taken = taken[-grid[0] * grid[1] * grid[2] :].unflatten(0, grid)  # (T, H, W)
            rows[f"{i}.{j} {name}"] = taken.cpu()
    low, high = video.aminmax()
    clip = (video[0, :, ::frames] - low) / (high - low) * 2 - 1  # whatever the normalisation was
    picture = figures.maps(rows, query, clip, patch)
    Path(path).write_bytes(picture.shot)
    return picture
