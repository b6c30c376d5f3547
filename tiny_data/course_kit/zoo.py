"""Submissions whose marks are known: right answers as a student would write them, and what becomes
of them.

ANSWERS are right. WRONG are edits of one of them: (function, what is wrong, the part that must
fail, words that the message must have or "", old text, new text, ...). RIGHT are whole answers in
unusual ways. CHEATS and ODD are files.
"""

ANSWERS = {
    "attend": '''
@shapes("q (..., I, d), k (..., J, d), v (..., J, e)")
def attend(q, k, v, return_weights=False):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    weights = torch.softmax(scores, dim=-1)
    out = weights @ v
    if return_weights:
        return out, weights
    return out
''',
    "space_attention": '''
@shapes("q, k, v (B, h, C + T*S, d)")
def space_attention(q, k, v, grid, attention=None):
    T, H, W = grid
    B, h, N, d = q.shape
    C = N - T * H * W
    frames = []
    for x in (q, k, v):
        patches = x[:, :, C:].reshape(B, h, T, H * W, d)
        if C > 0:
            copies = x[:, :, :C].expand(B, h, T, d).unsqueeze(3)
            patches = torch.cat([copies, patches], dim=3)
        frames.append(patches.transpose(1, 2).flatten(0, 1))
    out = (attention or attend)(*frames)
    out = out.unflatten(0, (B, T)).transpose(1, 2)
    if C == 0:
        return out.flatten(2, 3)
    tokens = out[:, :, :, 0]
    if C == 1:
        tokens = tokens.mean(2, keepdim=True)
    return torch.cat([tokens, out[:, :, :, 1:].flatten(2, 3)], dim=2)
''',
    "time_attention": '''
@shapes("q, k, v (B, h, C + T*S, d)")
def time_attention(q, k, v, grid, attention=None):
    T, H, W = grid
    B, h, N, d = q.shape
    C = N - T * H * W
    rows = [x[:, :, C:].reshape(B, h, T, H * W, d).transpose(2, 3) for x in (q, k, v)]
    out = (attention or attend)(*rows)
    out = out.transpose(2, 3).reshape(B, h, T * H * W, d)
    zeros = torch.zeros_like(q[:, :, :C])
    return torch.cat([zeros, out], dim=2)
''',
    "local_attention": '''
@shapes("q, k, v (B, h, C + T*S, d)")
def local_attention(q, k, v, grid):
    T, H, W = grid
    y, x = (H + 1) // 2, (W + 1) // 2
    boxes = []
    for rows in (slice(0, y), slice(y, H)):
        for columns in (slice(0, x), slice(x, W)):
            boxes.append((slice(0, T), rows, columns))
    return attend_in_boxes(q, k, v, grid, boxes)
''',
    "global_attention": '''
@shapes("q, k, v (B, h, C + T*S, d)")
def global_attention(q, k, v, grid):
    boxes = []
    for t in range(2):
        for y in range(2):
            for x in range(2):
                boxes.append((slice(t, None, 2), slice(y, None, 2), slice(x, None, 2)))
    return attend_in_boxes(q, k, v, grid, boxes)
''',
    "window_attention": '''
@shapes("q, k, v (B, h, C + T*S, d)")
def window_attention(q, k, v, grid, window=1):
    if window < 0:
        raise ValueError(f"window is {window}, but must not be negative")
    T, H, W = grid
    B, h, N, d = q.shape
    C = N - T * H * W
    q, k, v = (into_groups(x, grid, "(B T) h (H W) d").unflatten(0, (B, T)) for x in (q, k, v))
    frames = []
    for t in range(T):
        first, last = max(0, t - window), min(T - 1, t + window)
        near = [s for s in range(first, last + 1)]
        keys = torch.cat([k[:, s] for s in near], dim=2)
        values = torch.cat([v[:, s] for s in near], dim=2)
        frames.append(attend(q[:, t], keys, values))
    out = torch.stack(frames, dim=1).flatten(0, 1)
    return out_of_groups(out, grid, "(B T) h (H W) d", C)
''',
    "shift": '''
def shift(x, offset, axis):
    n = x.shape[axis]
    parts = []
    for i in range(n):
        j = i + offset
        if 0 <= j < n:
            parts.append(x.select(axis, j))
        else:
            parts.append(torch.zeros_like(x.select(axis, i)))
    return torch.stack(parts, dim=axis)
''',
    "mix_frames": '''
def mix_frames(x, T, window=1, moved=0.5):
    clips = x.unflatten(0, (-1, T))
    d = x.shape[-1]
    offsets = []
    for i in range(1, window + 1):
        offsets += [i, -i]
    share = int(moved * d / len(offsets) + 1e-6) if offsets else 0
    out = []
    for i, offset in enumerate(offsets):
        out.append(shift(clips[..., i * share : (i + 1) * share], offset, 1))
    out.append(clips[..., share * len(offsets) :])
    return torch.cat(out, dim=-1).flatten(0, 1)
''',
    "mixing_attention": '''
@shapes("q, k, v (B, h, C + T*S, d)")
def mixing_attention(q, k, v, grid, window=1, moved=0.5, summary=False):
    d = q.shape[3]
    if window < 0:
        raise ValueError(f"negative window {window}")
    if moved < 0 or moved > 1:
        raise ValueError(f"moved must be between 0 and 1, got {moved}")
    if window > 0 and moved > 0 and int(moved * d / (2 * window) + 1e-6) < 1:
        raise ValueError(f"{moved} of {d} channels are not enough for {2 * window} frames")
    T = grid[0]
    C = q.shape[2] - math.prod(grid)
    q, k, v = (into_groups(x, grid, "(B T) h (H W) d") for x in (q, k, v))
    keys, values = mix_frames(k, T, window, moved), mix_frames(v, T, window, moved)
    if summary:
        keys = torch.cat([keys, frame_means(k, T, C)], dim=2)
        values = torch.cat([values, frame_means(v, T, C)], dim=2)
    return out_of_groups(attend(q, keys, values), grid, "(B T) h (H W) d", C)
''',
    "most_orthogonal_subset": '''
def most_orthogonal_subset(x, count, start=0, criterion="cosine"):
    n = x.shape[-2]
    if not 1 <= count <= n:
        raise ValueError(f"cannot pick {count} of {n}")
    if criterion not in ("cosine", "inner product"):
        raise ValueError(f"unknown criterion {criterion}")
    picks = []
    for vectors in x.detach().double().reshape(-1, n, x.shape[-1]):
        if criterion == "cosine":
            vectors = vectors / vectors.norm(dim=1, keepdim=True)
        score = torch.zeros(n, dtype=vectors.dtype)
        picked = [start]
        while len(picked) < count:
            newest = (vectors @ vectors[picked[-1]]).abs()
            score = torch.maximum(score, newest) if criterion == "cosine" else score + newest
            score[picked] = float("inf")
            picked.append(int(score.argmin()))
        picks.append(picked)
    return torch.tensor(picks).reshape(*x.shape[:-2], count)
''',
    "orthoformer_attention": '''
@shapes("q, k, v (B, h, C + T*S, d), prototypes (B, h, P, d)")
def orthoformer_attention(q, k, v, grid, prototypes):
    found = attend(prototypes, k, v)
    return attend(q, prototypes, found)
''',
    "attend_linearly": '''
@in_float32
@shapes("q (..., I, M), k (..., J, M), v (..., J, e)")
def attend_linearly(q, k, v, eps=1e-6):
    I, J, M, e = q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1]
    total = q @ k.sum(-2, keepdim=True).transpose(-2, -1) + eps
    if (I + J) * M * e <= I * J * (M + e):
        return q @ (k.transpose(-2, -1) @ v) / total
    return (q @ k.transpose(-2, -1)) @ v / total
''',
    "fixation_gate": '''
def fixation_gate(layer, *read):
    joined = torch.cat(read, dim=-1)
    return torch.sigmoid(layer(joined))
''',
    "linear_attention": '''
@shapes("q, k, v (B, h, C + T*S, d)")
def linear_attention(q, k, v, grid, gates=None, feature_map=None):
    phi = feature_map or (lambda x: torch.relu(x) + 1 / math.sqrt(x.shape[-1]))
    a, b = phi(q), phi(k)
    if gates is not None:
        g_q, g_k = gates(a, b, v)
        a, b = g_q * a, g_k * b
    return attend_linearly(a, b, v)
''',
    "shift_from_neighbours": '''
@shapes("x (B, h, T*S, d)")
def shift_from_neighbours(x, grid, steps, share):
    B, h, N, d = x.shape
    T, H, W = grid
    if len(steps) * share > h * d:
        raise ValueError(f"{len(steps)} steps of {share} channels are more than {h * d}")
    clip = x.transpose(1, 2).reshape(B, T, H, W, h * d)
    parts = []
    for i, step in enumerate(steps):
        own = clip[..., i * share : (i + 1) * share]
        part, inside = own, torch.ones_like(own)
        for axis in range(3):
            part = shift(part, step[axis], axis + 1)
            inside = shift(inside, step[axis], axis + 1)
        diagonal = sum(number != 0 for number in step) > 1
        parts.append(torch.where(inside > 0, part, own) if diagonal else part)
    parts.append(clip[..., len(steps) * share :])
    return torch.cat(parts, dim=-1).reshape(B, N, h, d).transpose(1, 2)
''',
    "attend_per_frame": '''
@shapes("q (B, h, I, d), k, v (B, h, T*S, d)")
def attend_per_frame(q, k, v, T, attention=None):
    k = k.unflatten(2, (T, -1))
    v = v.unflatten(2, (T, -1))
    found = [(attention or attend)(q, k[:, :, t], v[:, :, t]) for t in range(T)]
    return torch.stack(found, dim=3)
''',
    "attend_along_trajectories": '''
@shapes("y (B, h, T*S, T, d)")
def attend_along_trajectories(y, proj_q, proj_kv, return_weights=False):
    B, h, N, T, d = y.shape
    own = torch.stack([y[:, :, n, n // (N // T)] for n in range(N)], dim=2)
    q = proj_q(own.transpose(1, 2).flatten(2))
    kv = proj_kv(y.permute(0, 2, 3, 1, 4).flatten(3))
    k, v = kv[..., : h * d], kv[..., h * d :]
    q = q.unflatten(2, (h, d)).transpose(1, 2)
    k = k.unflatten(3, (h, d)).permute(0, 3, 1, 2, 4)
    v = v.unflatten(3, (h, d)).permute(0, 3, 1, 2, 4)
    scores = (q.unsqueeze(3) * k).sum(-1) / math.sqrt(d)
    weights = scores.softmax(-1)
    out = (weights.unsqueeze(4) * v).sum(3)
    return (out, weights) if return_weights else out
''',
    "trajectory_attention": '''
@shapes("q, k, v (B, h, C + T*S, d)")
def trajectory_attention(q, k, v, grid, proj_q, proj_kv, first_stage=None, second_stage=None):
    C = q.shape[2] - math.prod(grid)
    first = first_stage or attend_per_frame
    second = second_stage or attend_along_trajectories
    tokens = attend(q[:, :, :C], k, v)
    y = first(q[:, :, C:], k[:, :, C:], v[:, :, C:], grid[0])
    out = second(y, proj_q, proj_kv)
    return torch.cat([tokens, out], dim=2)
''',
    "window_costs": '''
def window_costs(grid, windows, heads=2, width=8):
    tokens = torch.empty(1, heads, math.prod(grid), width, device="meta")
    costs = []
    for window in windows:
        with FlopCounterMode(display=False) as counter:
            window_attention(tokens, tokens, tokens, grid, window)
        costs.append(counter.get_total_flops() / 2)
    return costs
''',
    "prototype_errors": '''
def prototype_errors(q, k, v, grid, counts):
    exact = attend(q, k, v)
    errors = []
    for count in counts:
        prototypes = orthogonal_prototypes(q, k, count)
        wrong = orthoformer_attention(q, k, v, grid, prototypes) - exact
        errors.append(float(wrong.norm() / exact.norm()))
    return errors
''',
}

A, S, T, L, G, W = ("attend", "space_attention", "time_attention", "local_attention",
    "global_attention",
                    "window_attention")
X, M, O, F = "mixing_attention", "most_orthogonal_subset", "orthoformer_attention", "mix_frames"
LIN, LA, N, P = "attend_linearly", "linear_attention", "shift_from_neighbours", "attend_per_frame"
AL, TR = "attend_along_trajectories", "trajectory_attention"
SCORES = "q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])"
DENSE = '''    place = torch.arange(T * H * W) % (H * W)
    q, k, v = (x[:, :, C:] for x in (q, k, v))
    scores = (q @ k.mT / math.sqrt(d)).masked_fill(place[:, None] != place, -math.inf)
    out = scores.softmax(-1) @ v'''

WRONG = [
    # 1
    (A, "no scale", "values", "1/sqrt(d) is missing", " / math.sqrt(q.shape[-1])", ""),
    (A, "scale d", "values", "divided by d,", "math.sqrt(q.shape[-1])", "q.shape[-1]"),
    (A, "times sqrt(d)", "values", "multiplied by sqrt(d)", "/ math.sqrt", "* math.sqrt"),
    (A, "scale by the number of keys", "values", "number of keys", "q.shape[-1])", "k.shape[-2])"),
    (A, "scale by the number of heads", "values", "number of heads", "q.shape[-1])", "q.shape[1])"),
    (A, "softmax over the queries", "values", "over the queries", "dim=-1", "dim=-2"),
    (A, "softmax over heads", "values", "over the heads", "dim=-1", "dim=1"),
    (A, "softmax over the batch", "values", "over the batch", "dim=-1", "dim=0"),
    (A, "no softmax", "values", "no softmax", "torch.softmax(scores, dim=-1)", "scores"),
    (A, "not divided by the sum", "values", "not divided by their sum",
    "torch.softmax(scores, dim=-1)", "scores.exp()"),
    (A, "sigmoid", "values", "sigmoid", "torch.softmax(scores, dim=-1)", "scores.sigmoid()"),
    (A, "keys as values", "values", "", "weights @ v", "weights @ k"),
    (A, "detached", "gradients", "cut off", "out = weights @ v", "out = (weights @ v).detach()"),
    (A, "weights detached", "gradients", "", "weights @ v", "weights.detach() @ v"),
    (A, "values' data", "gradients", "reaches v", "weights @ v", "weights @ v.data"),
    (A, "always a pair", "values", "tuple of 2", "if return_weights", "if True"),
    (A, "no weights", "values", "", "if return_weights", "if False"),
    (A, "scores for weights", "weights", "before the softmax", "out, weights", "out, scores"),
    (A, "exp by hand overflows", "precision", "overflow", "torch.softmax(scores, dim=-1)",
     "scores.exp() / scores.exp().sum(-1, keepdim=True)"),
    (A, "four axes only", "leading axes", "", "scores = ", "B, h, I, d = q.shape\n    scores = "),
    (A, "TypeError for a misfit", "errors", "TypeError where a ValueError",
    '@shapes("q (..., I, d), k (..., J, d), v (..., J, e)")\n', "",
     "    scores", "    if q.shape[-1] != k.shape[-1]:\n        raise TypeError(f'{q.shape} "
                   "{k.shape}')\n    scores"),
    (A, "fused", "values", "fused", "    scores = ",
    "    fused = F.scaled_dot_product_attention(q, k, v)\n    scores = ",
     "out = weights @ v", "out = fused"),
    (A, "in place", "values", "in place", "    scores = " + SCORES,
    "    q /= math.sqrt(q.shape[-1])\n    scores = q @ k.transpose(-2, -1)"),
    (A, "float32 inside", "values", "", "weights @ v", "(weights.float() @ v.float())"),
    (A, "prints and returns nothing", "values", "None came back", "    return out\n",
    "    print(out)\n"),
    (A, "fused for the weights", "values", "fused", "    out = weights @ v",
     "    eye = torch.eye(k.shape[-2], dtype=q.dtype).expand(*k.shape[:-2], -1, -1)\n"
     "    weights = F.scaled_dot_product_attention(q, k, eye)\n    out = weights @ v"),
    # 2
    (S, "all tokens", "values", "", "out = (attention or attend)(*frames)",
     "frames = [x.transpose(0, 1).flatten(1, 2)[None] for x in frames]\n    out = (attention or "
     "attend)(*frames)"
     "[0].unflatten(1, (B * T, -1)).transpose(0, 1)"),
    (S, "class token summed", "class tokens", "summed", "tokens.mean(2, keepdim=True)",
    "tokens.sum(2, keepdim=True)"),
    (S, "class token of the first frame", "class tokens", "first group",
    "tokens.mean(2, keepdim=True)", "tokens[:, :, :1]"),
    (S, "class token of the last frame", "class tokens", "last group",
    "tokens.mean(2, keepdim=True)", "tokens[:, :, -1:]"),
    (S, "class token forgotten among the keys", "class tokens", "forgotten among the keys",
    "(*frames)",
     "(frames[0], *(x[:, :, min(C, 1):] for x in frames[1:]))"),
    (S, "class token attends to all", "class tokens", "attends to all",
    "    return torch.cat([tokens,",
     "    tokens = attend(q[:, :, :C], k, v)\n    return torch.cat([tokens,"),
    (S, "class token zero", "class tokens", "zeros", "    return torch.cat([tokens,",
    "    tokens = 0 * tokens\n    return torch.cat([tokens,"),
    (S, "attention ignored", "attention", "is ignored", "(attention or attend)", "attend"),
    (S, "(T S) read as (S T)", "values", "T and S are swapped", "reshape(B, h, T, H * W, d)",
    "reshape(B, h, H * W, T, d).transpose(2, 3)",
     "out[:, :, :, 1:].flatten(2, 3)", "out[:, :, :, 1:].transpose(2, 3).flatten(2, 3)",
     "return out.flatten(2, 3)",
     "return out.transpose(2, 3).flatten(2, 3)"),
    (S, "(S T) on the way in", "values", "on the way in only", "reshape(B, h, T, H * W, d)",
    "reshape(B, h, H * W, T, d).transpose(2, 3)"),
    (T, "attention ignored", "attention", "is ignored", "(attention or attend)", "attend"),
    (T, "order (S T)", "values", "T and S are swapped",
    "reshape(B, h, T, H * W, d).transpose(2, 3)", "reshape(B, h, H * W, T, d)",
     "out.transpose(2, 3).reshape", "out.reshape"),
    (T, "back in (S T)", "values", "comes back in the order (S T)", "out.transpose(2, 3).reshape",
    "out.reshape"),
    (T, "whole frames", "values", "space attention", ".transpose(2, 3) for", " for",
    "out.transpose(2, 3).reshape", "out.reshape"),
    (T, "class token handed on", "class tokens", "own value", "torch.zeros_like(q[:, :, :C])",
    "v[:, :, :C]"),
    (T, "class token's query", "class tokens", "its query", "torch.zeros_like(q[:, :, :C])",
    "q[:, :, :C]"),
    (T, "class token dropped", "class tokens", "", "return torch.cat([zeros, out], dim=2)",
    "return out"),
    (T, "class token attends to all", "class tokens", "attends to all",
    "torch.zeros_like(q[:, :, :C])",
     "attend(q[:, :, :C], k, v) if C else q[:, :, :0]"),
    (T, "a dense mask", "price", "all pairs", "    out = (attention or attend)(*rows)\n    out = "
                                              "out.transpose(2, 3).reshape(B, h, T * H * W, d)",
     "    if attention:\n        out = attention(*rows).transpose(2, 3).reshape(B, h, T * H * W, "
     "d)\n    zeros = torch.zeros_like(q[:, :, :C])\n" + DENSE
     + " if not attention else 0\n    if attention:\n        out = attention(*rows).transpose(2, "
       "3).reshape(B, h, T * H * W, d)",
     "    zeros = torch.zeros_like(q[:, :, :C])\n    return", "    return"),
    (T, "square frames only", "values", "", "H * W, d", "H * H, d"),
    (T, "keys detached", "gradients", "reaches k", "for x in (q, k, v)]",
    "for x in (q, k.detach(), v)]"),
    # 3
    (L, "own frame only", "values", "do not reach through all frames",
    "boxes.append((slice(0, T), rows, columns))",
     "boxes += [(slice(t, t + 1), rows, columns) for t in range(T)]"),
    (L, "rows only", "values", "only the rows", "(slice(0, x), slice(x, W))", "(slice(0, W),)"),
    (L, "columns only", "values", "only the columns", "(slice(0, y), slice(y, H))",
    "(slice(0, H),)"),
    (L, "time halved too", "values", "halves of the time",
    "boxes.append((slice(0, T), rows, columns))",
     "boxes += [(frames, rows, columns) for frames in (slice(0, (T + 1) // 2), slice((T + 1) // "
     "2, T))]"),
    (L, "H and W swapped", "values", "", "(H + 1) // 2, (W + 1) // 2",
    "(W + 1) // 2, (H + 1) // 2"),
    (L, "the last column left out", "odd grids", "", "slice(x, W)", "slice(x, W // 2 * 2)"),
    (L, "the middle twice", "odd grids", "", "slice(0, x), slice(x, W)",
    "slice(0, x), slice(W // 2, W)"),
    (L, "one box", "values", "all tokens", "    return",
    "    boxes = [(slice(0, T), slice(0, H), slice(0, W))]\n    return"),
    (G, "every frame", "values", "every frame", "for t in range(2)", "for t in range(1)",
    "slice(t, None, 2)", "slice(None)"),
    (G, "own frame only", "values", "only the own frame", "for t in range(2)",
    "for t in range(grid[0])", "slice(t, None, 2)", "slice(t, t + 1)"),
    (G, "every row", "values", "every row", "for y in range(2)", "for y in range(1)",
    "slice(y, None, 2)", "slice(None)"),
    (G, "every column", "values", "every column", "for x in range(2)", "for x in range(1)",
    "slice(x, None, 2)", "slice(None)"),
    (G, "half of the lattices", "values", "", "for t in range(2)", "for t in range(1)"),
    (G, "stride 3", "values", "", "range(2)", "range(3)", "None, 2", "None, 3"),
    (G, "stops before the end", "odd grids", "", "slice(x, None, 2)",
    "slice(x, grid[2] // 2 * 2, 2)"),
    # 4
    (W, "frames ahead only", "values", "only frames ahead", "max(0, t - window)", "t"),
    (W, "frames behind only", "values", "only frames behind", "min(T - 1, t + window)", "t"),
    (W, "one frame short", "values", "", "range(first, last + 1)",
    "range(first, max(last, first + 1))"),
    (W, "wraps round", "values", "wraps round", "[s for s in range(first, last + 1)]",
    "[s % T for s in range(t - window, t + window + 1)]"),
    (W, "the end repeated", "values", "repeated", "[s for s in range(first, last + 1)]",
     "[min(max(s, 0), T - 1) for s in range(t - window, t + window + 1)]"),
    (W, "zeros attended to", "values", "zeros are attended to",
    "[s for s in range(first, last + 1)]", "[s for s in range(t - window, t + window + 1)]",
     "k[:, s] for s in near", "k[:, s] if 0 <= s < T else 0 * k[:, 0] for s in near",
     "v[:, s] for s in near", "v[:, s] if 0 <= s < T else 0 * v[:, 0] for s in near"),
    (W, "window ignored", "window", "", "    frames = []", "    window = 1\n    frames = []"),
    (W, "all frames", "values", "all frames", "range(first, last + 1)", "range(T)"),
    (W, "own frame", "values", "own frame", "range(first, last + 1)", "range(t, t + 1)"),
    (W, "nothing checked", "errors", "", "if window < 0:", "if False:"),
    (W, "TypeError", "errors", "TypeError where", "raise ValueError", "raise TypeError"),
    (W, "an assert", "errors", "AssertionError where",
    "    if window < 0:\n        raise ValueError(f\"window is {window}, but must not be "
    "negative\")",
     "    assert window >= 0, window"),
    (W, "message without the value", "errors", "does not show", "{window}", "wrong"),
    (W, "dense mask", "price", "all pairs", "range(first, last + 1)", "range(T)",
    "attend(q[:, t], keys, values)",
     "((q[:, t] @ keys.mT / math.sqrt(d)).masked_fill((abs(torch.arange(T) - t) > "
     "window).repeat_interleave("
     "k.shape[3]), -math.inf).softmax(-1) @ values)"),
    # 5
    ("shift", "the wrong way", "values", "wrong direction", "i + offset", "i - offset"),
    ("shift", "wraps", "values", "wraps", "j = i + offset", "j = (i + offset) % n"),
    ("shift", "keeps its own", "values", "keep what they had",
    "torch.zeros_like(x.select(axis, i))", "x.select(axis, i)"),
    ("shift", "axis ignored", "axes", "axis 1 is moved", "    n = ", "    axis = 1\n    n = "),
    ("shift", "one position only", "axes", "", "i + offset", "i + max(-1, min(1, offset))"),
    ("shift", "far moves nothing", "far", "moves nothing", "    n = x.shape[axis]",
    "    n = x.shape[axis]\n    offset = 0 if abs(offset) >= n else offset"),
    ("shift", "detached", "gradients", "", "return torch.stack(parts, dim=axis)",
    "return torch.stack(parts, dim=axis).detach()"),
    (F, "order 1, 2, -1, -2", "window", "the order of the frames", "offsets += [i, -i]",
    "offsets += [i]",
     "    share = ", "    offsets += [-i for i in offsets]\n    share = "),
    (F, "previous before next", "values", "previous frame", "[i, -i]", "[-i, i]"),
    (F, "share for each, not in all", "values", "share in all", "moved * d / len(offsets)",
    "moved * d / len(offsets) * 2"),
    (F, "window ignored", "window", "window is ignored", "    clips", "    window = 1\n    clips"),
    (F, "moved ignored", "moved", "moved is ignored", "    clips", "    moved = 0.5\n    clips"),
    (F, "(T B)", "values", "(T B)", "x.unflatten(0, (-1, T))",
    "x.unflatten(0, (T, -1)).transpose(0, 1)",
     "torch.cat(out, dim=-1).flatten(0, 1)",
     "torch.cat(out, dim=-1).transpose(0, 1).flatten(0, 1)"),
    (X, "values not mixed", "values", "values are not", "mix_frames(v, T, window, moved)", "v"),
    (X, "keys not mixed", "values", "keys are not", "mix_frames(k, T, window, moved)", "k"),
    (X, "queries mixed too", "values", "", "    keys, values",
    "    q = mix_frames(q, T, window, moved)\n    keys, values"),
    (X, "options dropped", "options", "ignored", ", T, window, moved)", ", T)"),
    (X, "summary ignored", "summary", "summary is ignored", "if summary", "if False"),
    (X, "summaries mixed", "summary", "mixed too", "frame_means(k, T, C)",
    "frame_means(keys[:, :, :k.shape[2]], T, C)",
     "frame_means(v, T, C)", "frame_means(values[:, :, :v.shape[2]], T, C)"),
    (X, "class token in the summary", "summary", "part of the mean", "frame_means(k, T, C)",
    "frame_means(k, T, 0)",
     "frame_means(v, T, C)", "frame_means(v, T, 0)"),
    (X, "own summary only", "summary", "own summary", "frame_means(k, T, C)",
    "k[:, :, min(C, 1):].mean(2, keepdim=True)",
     "frame_means(v, T, C)", "v[:, :, min(C, 1):].mean(2, keepdim=True)"),
    (X, "window not checked", "errors", "", "if window < 0", "if False"),
    (X, "moved not checked", "errors", "", "if moved < 0 or moved > 1", "if False"),
    (X, "too narrow not checked", "errors", "", "if window > 0 and", "if False and"),
    # 6
    (M, "argmax", "values", "argmax", 'float("inf")', '-float("inf")', "argmin", "argmax"),
    (M, "no absolute value", "values", "absolute value", ".abs()", ""),
    (M, "sum for max", "values", "summed", 'torch.maximum(score, newest) if criterion == "cosine" '
                                           'else score + newest', "score + newest"),
    (M, "min for max", "values", "", "torch.maximum(score, newest)",
    "torch.minimum(score + (score == 0) * 9, newest)"),
    (M, "not normalised", "values", "not normalised", 'if criterion == "cosine":', "if False:"),
    (M, "normalised in both", "criterion", "are normalised", 'if criterion == "cosine":',
    "if True:"),
    (M, "only the newest counts", "values", "newest", "torch.maximum(score, newest)",
    "newest.clone()"),
    (M, "one choice for all", "values", "one choice", "        picks.append(picked)",
    "        picks.append(picks[0] if picks else picked)"),
    (M, "start ignored", "start", "`start` is ignored", "picked = [start]", "picked = [0]"),
    (M, "criterion ignored", "criterion", "", 'if criterion == "cosine" else score + newest',
    "if True else score",
     'if criterion == "cosine":', "if True:"),
    (M, "sorted", "values", "sorted", "picks.append(picked)", "picks.append(sorted(picked))"),
    (M, "the first ones", "values", "in their order", "int(score.argmin())", "len(picked)"),
    (M, "nothing checked", "errors", "", "if not 1 <= count <= n", "if False",
    "if criterion not in", "if False and criterion not in"),
    (M, "picked twice", "criterion", "", '            score[picked] = float("inf")\n', ""),
    (O, "exact", "values", "prototypes are not used", "attend(q, prototypes, found)",
    "attend(q, k, v)"),
    (O, "one step", "values", "first step comes back", "return attend(q, prototypes, found)",
    "return found if found.shape == q.shape else found[:, :, :1] + 0 * q"),
    (O, "no scale in the second", "values", "second step is missing",
    "attend(q, prototypes, found)",
     "(q @ prototypes.mT).softmax(-1) @ found"),
    (O, "no softmax in the second", "values", "no softmax", "attend(q, prototypes, found)",
     "q @ prototypes.mT @ found / q.shape[3] ** 0.5"),
    (O, "prototypes detached", "gradients", "reaches prototypes", "attend(prototypes, k, v)",
    "attend(prototypes.detach(), k, v)",
     "attend(q, prototypes, found)", "attend(q, prototypes.detach(), found)"),
    (O, "the product of two N x P first", "price", "", "attend(q, prototypes, found)",
     "(attend(q, prototypes, found, True)[1] @ attend(prototypes, k, v, True)[1]) @ v"),
    # 7
    (LIN, "not normalised", "values", "not divided", "/ total", ""),
    (LIN, "eps ignored", "eps", "eps is ignored", "+ eps", "+ 1e-6"),
    (LIN, "no eps", "eps", "", " + eps", ""),
    (LIN, "divided by the number", "values", "number", "/ total", "/ J"),
    (LIN, "always N x N", "price", "", "if (I + J) * M * e <= I * J * (M + e)", "if False"),
    (LIN, "never N x N", "price", "", "if (I + J) * M * e <= I * J * (M + e)", "if True"),
    (LIN, "softmax", "values", "softmax", "    if (I + J)",
    "    return attend(q, k, v)\n    if (I + J)"),
    (LIN, "swapped", "values", "swapped", "    I, J",
    "    if q.shape == k.shape:\n        q, k = k, q\n    I, J"),
    (LIN, "denominator detached", "gradients", "", "total = q", "total = q.detach()"),
    ("fixation_gate", "no sigmoid", "values", "no sigmoid", "torch.sigmoid(layer(joined))",
    "layer(joined)"),
    ("fixation_gate", "softmax", "values", "softmax", "torch.sigmoid(layer(joined))",
    "torch.softmax(layer(joined), -1)"),
    ("fixation_gate", "multiplied", "values", "gate alone", "return torch",
    "return read[0] * torch"),
    ("fixation_gate", "reverse order", "values", "reverse order", "torch.cat(read",
    "torch.cat(read[::-1]"),
    (LA, "elu + 1", "values", "elu(x) + 1", "torch.relu(x) + 1 / math.sqrt(x.shape[-1])",
    "F.elu(x) + 1"),
    (LA, "no floor", "values", "floor 1/sqrt(d) is missing", " + 1 / math.sqrt(x.shape[-1])", ""),
    (LA, "floor sqrt(d)", "values", "floor is sqrt(d)", "1 / math.sqrt", "math.sqrt"),
    (LA, "floor 1/d", "values", "floor is 1/d", "1 / math.sqrt(x.shape[-1])", "1 / x.shape[-1]"),
    (LA, "exp", "values", "phi is exp", "torch.relu(x) + 1 / math.sqrt(x.shape[-1])", "x.exp()"),
    (LA, "phi of q only", "values", "q only", "phi(q), phi(k)", "phi(q), k"),
    (LA, "gates ignored", "gates", "gates are ignored", "if gates is not None", "if False"),
    (LA, "gates before the ReLU", "gates", "before phi", "gates(a, b, v)", "gates(q, k, v)"),
    (LA, "gates multiply before the ReLU", "gates", "before phi", "a, b = g_q * a, g_k * b",
    "a, b = phi(g_q * q), phi(g_k * k)"),
    (LA, "second gate dropped", "gates", "second gate is dropped", "g_k * b", "b"),
    (LA, "first gate for both", "gates", "first gate", "g_k * b", "g_q * b"),
    (LA, "feature_map ignored", "feature_map", "feature_map is ignored", "phi = feature_map or",
    "phi ="),
    (LA, "softmax attention", "values", "softmax attention", "attend_linearly(a, b, v)",
    "attend(q, k, v)"),
    # 8
    (N, "no rule for diagonals", "corners", "rule for diagonals", "if diagonal else part",
    "if False else part"),
    (N, "own at every border", "values", "", "if diagonal else part", "if True else part"),
    (N, "rows and columns ignored", "rows and columns", "are ignored", "for axis in range(3)",
    "for axis in range(1)"),
    (N, "rows and columns swapped", "rows and columns", "are swapped", "step[axis], axis + 1",
    "step[axis], (1, 3, 2)[axis]"),
    (N, "nothing checked", "errors", "", "if len(steps) * share > h * d", "if False"),
    (N, "the wrong way", "values", "wrong way", "shift(part, step[axis]", "shift(part, -step[axis]",
    "shift(inside, step[axis]", "shift(inside, -step[axis]"),
    (N, "the last channels, not the first", "values", "", "h * d)\n    parts",
    "h * d).flip(-1)\n    parts",
     "return torch.cat(parts, dim=-1)", "return torch.cat(parts, dim=-1).flip(-1)"),
    (N, "heads joined as (d h)", "values", "(d h)", "x.transpose(1, 2).reshape(B, T, H, W, h * d)",
     "x.permute(0, 2, 3, 1).reshape(B, T, H, W, h * d)", "reshape(B, N, h, d).transpose(1, 2)",
     "reshape(B, N, d, h).permute(0, 3, 1, 2)"),
    (N, "detached", "gradients", "", "clip = x", "clip = x.detach()"),
    # 9
    (P, "one softmax", "values", "all frames at once", "    return torch.stack(found, dim=3)",
     "    if attention is None:\n        w = attend(q, k.flatten(2, 3), v.flatten(2, 3), "
     "True)[1].unflatten(3, (T, -1))\n"
     "        found = [w[:, :, :, t] @ v[:, :, t] for t in range(T)]\n    return "
     "torch.stack(found, dim=3)"),
    (P, "attention ignored", "attention", "is ignored", "(attention or attend)", "attend"),
    (P, "(S T)", "values", "(S T)", "k.unflatten(2, (T, -1))",
    "k.unflatten(2, (-1, T)).transpose(2, 3)", "v.unflatten(2, (T, -1))",
     "v.unflatten(2, (-1, T)).transpose(2, 3)"),
    (P, "detached", "gradients", "cut off", "dim=3)", "dim=3).detach()"),
    (AL, "own frame 0", "values", "first frame", "n // (N // T)", "0"),
    (AL, "own frame n % T", "values", "n % T", "n // (N // T)", "n % T"),
    (AL, "y as value", "values", "y~ itself", "kv[..., h * d :]",
    "y.permute(0, 2, 3, 1, 4).flatten(3)"),
    (AL, "no scale", "values", "scale of the second stage is missing", " / math.sqrt(d)", ""),
    (AL, "scale by D", "values", "width of all heads", "math.sqrt(d)", "math.sqrt(h * d)"),
    (AL, "heads as (d h)", "values", "joined as (d h)", "own.transpose(1, 2).flatten(2)",
    "own.permute(0, 2, 3, 1).flatten(2)",
     "y.permute(0, 2, 3, 1, 4).flatten(3)", "y.permute(0, 2, 3, 4, 1).flatten(3)"),
    (AL, "W_k and W_v swapped", "values", "W_k and W_v are swapped", "k, v = kv", "v, k = kv"),
    (AL, "W_q left out", "values", "W_q is left out", "proj_q(own.transpose(1, 2).flatten(2))",
    "own.transpose(1, 2).flatten(2)"),
    (AL, "the weights of nn.Linear read", "layers", "",
    "proj_kv(y.permute(0, 2, 3, 1, 4).flatten(3))",
     "F.linear(y.permute(0, 2, 3, 1, 4).flatten(3), proj_kv.weight, proj_kv.bias)"),
    (AL, "bias of W_v forgotten", "values", "bias of W_v", "h * d :]",
    "h * d :] - proj_kv(torch.zeros_like(y[:, 0, :, :, :1]).expand(B, N, T, h * d))[..., h * d :]"),
    (TR, "first_stage ignored", "first_stage", "is ignored", "first_stage or attend_per_frame",
    "attend_per_frame"),
    (TR, "second_stage ignored", "second_stage", "is ignored",
    "second_stage or attend_along_trajectories", "attend_along_trajectories"),
    (TR, "class token not to itself", "class tokens", "not to itself", "attend(q[:, :, :C], k, v)",
    "attend(q[:, :, :C], k[:, :, C:], v[:, :, C:])"),
    (TR, "class token zero", "class tokens", "zeros", "tokens = attend(q[:, :, :C], k, v)",
    "tokens = 0 * q[:, :, :C]"),
    (TR, "no second stage", "values", "no second stage", "out = second(y, proj_q, proj_kv)",
    "out = y.mean(3)"),
    (TR, "q in place of the frame's token", "values", "not the token of the own frame",
    "out = second(y, proj_q, proj_kv)",
     "own = q[:, :, C:]\n    B, h, n, t, d = y.shape\n    k2, v2 = proj_kv(y.permute(0, 2, 3, 1, "
     "4).flatten(3)).chunk(2, -1)\n"
     "    k2, v2 = (x.unflatten(3, (h, d)).permute(0, 3, 1, 2, 4) for x in (k2, v2))\n"
     "    q2 = proj_q(own.transpose(1, 2).flatten(2)).unflatten(2, (h, d)).transpose(1, "
     "2).unsqueeze(3)\n"
     "    out = attend(q2, k2, v2).squeeze(3) if second_stage is None else second_stage(y, "
     "proj_q, proj_kv)"),
    # 10
    ("window_costs", "operations", "values", "two of them", " / 2)", ")"),
    ("prototype_errors", "not relative", "values", "not divided by the norm", " / exact.norm()",
    ""),
]

# Right answers in unusual ways: (function, what is unusual, text). The rest of the file is right
# too.
RIGHT = [
    (A, "an alias", '''
def my_attend(q, k, v, return_weights=False):
    weights = ((q @ k.mT) * q.shape[-1] ** -0.5).softmax(-1)
    return (weights @ v, weights) if return_weights else weights @ v

attend = my_attend
'''),
    (A, "a lambda", '''
attend = lambda q, k, v, return_weights=False: (
    lambda w: (w @ v, w) if return_weights else w @ v)((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1))
'''),
    (A, "a callable object", '''
class Attending(nn.Module):
    def forward(self, q, k, v, return_weights=False):
        weights = F.softmax(torch.einsum("...id,...jd->...ij", q, k) / q.shape[-1] ** 0.5, dim=-1)
        out = torch.einsum("...ij,...je->...ie", weights, v)
        return (out, weights) if return_weights else out

attend = Attending()
'''),
    (A, "a column of ones for the sum", '''
@shapes("q (..., I, d), k (..., J, d), v (..., J, e)")
def attend(q, k, v, return_weights=False):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    powers = (scores - scores.amax(-1, keepdim=True)).exp()
    out = powers @ torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)
    out = out[..., :-1] / out[..., -1:]
    return (out, powers / powers.sum(-1, keepdim=True)) if return_weights else out
'''),
    (A, "a loop over queries, products by elements", '''
@shapes("q (..., I, d), k (..., J, d), v (..., J, e)")
def attend(q, k, v, return_weights=False):
    out, rows = [], []
    for i in range(q.shape[-2]):
        scores = (q[..., i : i + 1, :] * k).sum(-1) / q.shape[-1] ** 0.5
        row = torch.exp(scores - torch.logsumexp(scores, -1, keepdim=True))
        rows.append(row)
        out.append((row.unsqueeze(-1) * v).sum(-2))
    out = torch.stack(out, -2) if out else q.new_zeros(*q.shape[:-1], v.shape[-1])
    return (out, torch.stack(rows, -2)) if return_weights else out
'''),
    (A, "the fused kernel without weights, as the docstring has it", '''
@shapes("q (..., I, d), k (..., J, d), v (..., J, e)")
def attend(q, k, v, return_weights=False):
    if not return_weights:
        return F.scaled_dot_product_attention(q, k, v)
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
    return weights @ v, weights
'''),
    (S, "the einops pattern", '''
@shapes("q, k, v (B, h, C + T*S, d)")
def space_attention(q, k, v, grid, attention=None):
    return attend_in_groups(q, k, v, grid, "(B T) h (H W) d", attention)
'''),
    (S, "from einops import *, and a loop over frames", '''
from einops import *

@shapes("q, k, v (B, h, C + T*S, d)")
def space_attention(q, k, v, grid, attention=None):
    T, H, W = grid
    C = q.shape[2] - T * H * W
    function = attention if attention is not None else attend
    patches, tokens = [], []
    for t in range(T):
        own = list(range(C + t * H * W, C + (t + 1) * H * W))
        mine = ([t] if C == T and C != 1 else [0]) if C else []
        out = function(*(x[:, :, mine + own] for x in (q, k, v)))
        tokens.append(out[:, :, : len(mine)])
        patches.append(out[:, :, len(mine) :])
    tokens = torch.cat(tokens, 2)
    if C == 1:
        tokens = reduce(tokens, "B h T d -> B h 1 d", "mean")
    return torch.cat([tokens, *patches], dim=2)
'''),
    (T, "attend_in_boxes, one box for each position", '''
@shapes("q, k, v (B, h, C + T*S, d)")
def time_attention(q, k, v, grid, attention=None):
    T, H, W = grid
    C = q.shape[2] - T * H * W
    function = attention or attend
    q, k, v = (x[:, :, C:].unflatten(2, grid) for x in (q, k, v))
    out = torch.zeros_like(v)
    for y in range(H):
        for x in range(W):
            out[:, :, :, y, x] = function(q[:, :, :, y, x], k[:, :, :, y, x], v[:, :, :, y, x])
    return F.pad(out.flatten(2, 4), (0, 0, C, 0))
'''),
    (T, "everything in einsum", '''
@shapes("q, k, v (B, h, C + T*S, d)")
def time_attention(q, k, v, grid, attention=None):
    T, H, W = grid
    B, h, N, d = q.shape
    C = N - T * H * W
    q, k, v = (x.contiguous()[:, :, C:].reshape(B, h, T, H * W, d) for x in (q, k, v))
    if attention is not None:
        q, k, v = (x.permute(0, 3, 1, 2, 4).reshape(-1, h, T, d) for x in (q, k, v))
        out = attention(q, k, v).view(B, H * W, h, T, d).permute(0, 2, 3, 1, 4)
    else:
        w = torch.einsum("bhtsd,bhusd->bhstu", q, k).div(d**0.5).softmax(-1)
        out = torch.einsum("bhstu,bhusd->bhtsd", w, v)
    return torch.cat([q.new_zeros(B, h, C, d), out.reshape(B, h, -1, d)], dim=2)
'''),
    (L, "the larger half of an odd side second", '''
@shapes("q, k, v (B, h, C + T*S, d)")
def local_attention(q, k, v, grid):
    T, H, W = grid
    boxes = [(slice(None), y, x) for y in (slice(H // 2), slice(H // 2, None))
             for x in (slice(W // 2), slice(W // 2, None))]
    return attend_in_boxes(q, k, v, grid, boxes)
'''),
    (L, "by shifted windows of half a frame", '''
@shapes("q, k, v (B, h, C + T*S, d)")
def local_attention(q, k, v, grid):
    T, H, W = grid
    return shifted_window_attention(q, k, v, grid, (T, (H + 1) // 2, (W + 1) // 2))
'''),
    (G, "boxes from a generator, gathered by index", '''
@shapes("q, k, v (B, h, C + T*S, d)")
def global_attention(q, k, v, grid):
    C = q.shape[2] - math.prod(grid)
    place = torch.arange(math.prod(grid)).view(*grid)
    out, tokens = torch.zeros_like(v), []
    for t, y, x in itertools.product(range(2), repeat=3):
        inside = place[t::2, y::2, x::2].flatten() + C
        if len(inside):
            rows = torch.cat([torch.arange(C), inside])
            found = attend(q[:, :, rows], k[:, :, rows], v[:, :, rows])
            tokens.append(found[:, :, :C])
            out = out.index_copy(2, inside, found[:, :, C:])
    return out.index_copy(2, torch.arange(C), sum(tokens) / len(tokens)) if C else out
'''),
    (W, "a message with the value in words of their own", '''
@shapes("q, k, v (B, h, C + T*S, d)")
def window_attention(q, k, v, grid, window=1):
    if window < 0:
        raise ValueError("a window of %d frames makes no sense" % window)
    T, H, W = grid
    C = q.shape[2] - T * H * W
    S = H * W
    out, tokens = [], []
    for t in range(T):
        near = range(max(0, t - window), min(T, t + window + 1))
        rows = []
        for s in near:
            rows += [s if C == T and C > 1 else 0] if C else []
            rows += list(range(C + s * S, C + s * S + S))
        mine = ([t if C == T and C > 1 else 0] if C else []) + list(range(C + t * S, C + t * S + S))
        found = attend(q[:, :, mine], k[:, :, rows], v[:, :, rows])
        tokens.append(found[:, :, : min(C, 1)])
        out.append(found[:, :, min(C, 1) :])
    tokens = torch.cat(tokens, 2)
    return torch.cat([tokens.mean(2, keepdim=True) if C == 1 else tokens, *out], dim=2)
'''),
    ("shift", "by rolling and setting to zero", '''
def shift(x, offset, axis):
    n = x.shape[axis]
    i = torch.arange(n, device=x.device) + offset
    kept = ((i >= 0) & (i < n)).to(x.dtype)
    size = [1] * x.ndim
    size[axis] = n
    return x.roll(-offset, axis) * kept.view(size)
'''),
    ("shift", "by padding", '''
def shift(x, offset, axis):
    x = x.movedim(axis, -1)
    n = x.shape[-1]
    offset = min(n, max(-n, offset))
    return F.pad(x, (-offset, offset)).movedim(-1, axis)
'''),
    (F, "channel by channel", '''
def mix_frames(x, T, window=1, moved=0.5):
    B, d = len(x) // T, x.shape[-1]
    share = int(moved * d / (2 * window) + 1e-6) if window else 0
    columns = []
    for c in range(d):
        part = c // share if share else 2 * window
        step = 0 if part >= 2 * window else (part // 2 + 1) * (1 if part % 2 == 0 else -1)
        columns.append(shift(x[..., c].reshape(B, T, *x.shape[1:-1]), step, 1).flatten(0, 1))
    return torch.stack(columns, -1)
'''),
    (M, "plain Python loops over numbers", '''
def most_orthogonal_subset(x, count, start=0, criterion="cosine"):
    n = x.shape[-2]
    if count < 1 or count > n:
        raise ValueError(f"{count} vectors of {n}?")
    if criterion != "cosine" and criterion != "inner product":
        raise ValueError("no criterion called " + repr(criterion))
    answer = []
    for one in x.reshape(-1, n, x.shape[-1]):
        rows = one.tolist()
        def like(a, b):
            dot = abs(sum(s * t for s, t in zip(a, b)))
            if criterion == "cosine":
                dot /= math.sqrt(sum(s * s for s in a)) * math.sqrt(sum(t * t for t in b))
            return dot
        picked = [start]
        while len(picked) < count:
            best, lowest = None, math.inf
            for i in range(n):
                if i in picked:
                    continue
                all_of_them = [like(rows[i], rows[j]) for j in picked]
                score = max(all_of_them) if criterion == "cosine" else sum(all_of_them)
                if score < lowest:
                    best, lowest = i, score
            picked.append(best)
        answer.append(picked)
    return torch.tensor(answer).view(*x.shape[:-2], count)
'''),
    (O, "the weights written out", '''
@shapes("q, k, v (B, h, C + T*S, d), prototypes (B, h, P, d)")
def orthoformer_attention(q, k, v, grid, prototypes):
    d = q.shape[-1]
    second = torch.softmax(prototypes @ k.mT / d**0.5, dim=3) @ v
    return torch.einsum("bhip,bhpd->bhid", torch.softmax(q @ prototypes.mT / d**0.5, dim=3), second)
'''),
    (LIN, "the denominator by a column of ones", '''
@in_float32
@shapes("q (..., I, M), k (..., J, M), v (..., J, e)")
def attend_linearly(q, k, v, eps=1e-6):
    I, M, J, e = *q.shape[-2:], *v.shape[-2:]
    v = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)
    out = q @ (k.mT @ v) if (I + J) * M * e < I * J * (M + e) else (q @ k.mT) @ v
    return out[..., :-1] / (out[..., -1:] + eps)
'''),
    (LIN, "by einsum", '''
@in_float32
@shapes("q (..., I, M), k (..., J, M), v (..., J, e)")
def attend_linearly(q, k, v, eps=1e-6):
    below = torch.einsum("...im,...jm->...i", q, k.sum(-2, keepdim=True)) + eps
    few = q.shape[-2] * k.shape[-2] * (q.shape[-1] + v.shape[-1])
    if few < (q.shape[-2] + k.shape[-2]) * q.shape[-1] * v.shape[-1]:
        above = torch.einsum("...ij,...je->...ie", torch.einsum("...im,...jm->...ij", q, k), v)
    else:
        above = torch.einsum("...im,...me->...ie", q, torch.einsum("...jm,...je->...me", k, v))
    return above / below.unsqueeze(-1)
'''),
    ("fixation_gate", "the sigmoid by exp, and a helper named as one of ours", '''
def pool(tensors):
    return torch.cat(tensors, -1)

def fixation_gate(layer, *read):
    return 1 / (1 + torch.exp(-layer(pool(read))))
'''),
    (LA, "the floor by adding a tensor, gates unpacked late", '''
@shapes("q, k, v (B, h, C + T*S, d)")
def linear_attention(q, k, v, grid, gates=None, feature_map=None):
    floor = torch.tensor(q.shape[-1], dtype=q.dtype) ** -0.5
    features = [feature_map(x) if feature_map else x.clamp(min=0) + floor for x in (q, k)]
    if gates:
        features = [g * x for g, x in zip(gates(*features, v), features)]
    return attend_linearly(features[0], features[1], v)
'''),
    (N, "index by index", '''
@shapes("x (B, h, T*S, d)")
def shift_from_neighbours(x, grid, steps, share):
    T, H, W = grid
    B, h, N, d = x.shape
    if share * len(steps) > h * d:
        raise ValueError(f"share {share} is too much")
    joined = x.permute(0, 2, 1, 3).reshape(B, N, h * d)
    columns = []
    for number, (dt, dy, dx) in enumerate(steps):
        rows = []
        own = joined[:, :, number * share : number * share + share]
        for n in range(N):
            t, y, z = n // (H * W) + dt, n // W % H + dy, n % W + dx
            if 0 <= t < T and 0 <= y < H and 0 <= z < W:
                rows.append(own[:, (t * H + y) * W + z])
            elif (dt, dy, dx).count(0) < 2:
                rows.append(own[:, n])
            else:
                rows.append(torch.zeros_like(own[:, n]))
        columns.append(torch.stack(rows, 1))
    columns.append(joined[:, :, len(steps) * share :])
    return torch.cat(columns, 2).reshape(B, N, h, d).permute(0, 2, 1, 3)
'''),
    (P, "frames in the batch by einops", '''
@shapes("q (B, h, I, d), k, v (B, h, T*S, d)")
def attend_per_frame(q, k, v, T, attention=None):
    k, v = (rearrange(x, "b h (t s) d -> (t b) h s d", t=T) for x in (k, v))
    out = (attention or attend)(repeat(q, "b h i d -> (t b) h i d", t=T), k, v)
    return rearrange(out, "(t b) h i d -> b h i t d", t=T)
'''),
    (AL, "patch by patch", '''
@shapes("y (B, h, T*S, T, d)")
def attend_along_trajectories(y, proj_q, proj_kv, return_weights=False):
    B, h, N, T, d = y.shape
    found, paid = [], []
    for n in range(N):
        path = y[:, :, n].transpose(1, 2).reshape(B, T, h * d)
        q = proj_q(path[:, n * T // N]).view(B, h, 1, d)
        k, v = (x.view(B, T, h, d).transpose(1, 2) for x in proj_kv(path).split(h * d, dim=-1))
        out, weights = attend(q, k, v, return_weights=True)
        found.append(out.squeeze(2))
        paid.append(weights)
    out = torch.stack(found, 2)
    return (out, torch.stack(paid, 2)) if return_weights else out
'''),
    (TR, "class tokens only if there are any", '''
@shapes("q, k, v (B, h, C + T*S, d)")
def trajectory_attention(q, k, v, grid, proj_q, proj_kv, first_stage=None, second_stage=None):
    T, H, W = grid
    patches = [x[:, :, -T * H * W :] for x in (q, k, v)]
    y = first_stage(*patches, T) if first_stage else attend_per_frame(*patches, T)
    stage = attend_along_trajectories if second_stage is None else second_stage
    out = stage(y, proj_q, proj_kv)
    C = q.shape[2] - T * H * W
    return out if C == 0 else torch.cat([attend(q[:, :, :C], k, v), out], 2)
'''),
    ("window_costs", "numbers of a tensor", '''
def window_costs(grid, windows, heads=2, width=8):
    def macs(window):
        q, k, v = (torch.zeros(1, heads, math.prod(grid), width, device="meta") for _ in range(3))
        with FlopCounterMode(display=False) as counter:
            window_attention(q, k, v, grid, window)
        return counter.get_total_flops() // 2
    return torch.tensor([macs(w) for w in windows])
'''),
]

# Whole files that are right but unusual as files: (what is unusual, function of the right file's
# text -> bytes)
RIGHT_FILES = [
    ("a byte-order mark", lambda text: b"\xef\xbb\xbf" + text.encode()),
    ("Latin-1 without a declaration",
     lambda text: ("# für Zoë, naïve Lösung\n" + text).encode("latin-1", "replace")),
    ("Latin-1 with a declaration",
     lambda text: ("# -*- coding: latin-1 -*-\n# für\n" + text).encode("latin-1", "replace")),
    ("UTF-16", lambda text: text.encode("utf-16")),
    ("lines that end in CR LF", lambda text: text.replace("\n", "\r\n").encode()),
    ("annotations from the future",
     lambda text: ("from __future__ import annotations\n" + text).encode()),
    ("prints on import and a main", lambda text: (
        text + "\nprint('hello')\nif __name__ == '__main__':\n    raise SystemExit(3)\n").encode()),
    ("imports that are not installed",
     lambda text: ("import matplotlib_of_nobody as plt\n" + text).encode()),
    ("plots at the end",
     lambda text: (text + "\nopen('plot.png', 'wb').write(b'x')\nassert False\n").encode()),
    ("the answers alone, nothing else of the file",
    lambda text: text[text.index("\n\n\n\n@shapes(") :].encode()),
    ("tabs in the last lines", lambda text: (text + "\nif True:\n\tlast = 1\n").encode()),
]

# Attempts to get marks without an answer: (what is tried, text put at the end of the file that was
# handed out)
STEAL = "\nfor name in ASKED:\n    globals()[name] = {}\n"
CHEATS = [
    ("pytest.skip in every function", "import pytest\n" + STEAL.format("lambda *a, **o: "
                                                                       "pytest.skip('later')")),
    ("pytest.xfail in every function", "import pytest\n" + STEAL.format("lambda *a, **o: "
                                                                        "pytest.xfail('known')")),
    ("skip on import", "import pytest\npytest.skip('nothing here', allow_module_level=True)\n"),
    ("os._exit(0) in every function", "import os\n" + STEAL.format("lambda *a, **o: os._exit(0)")),
    ("os._exit(0) on import", "import os\nos._exit(0)\n"),
    ("sys.exit on import", "import sys\nsys.exit(0)\n"),
    ("the module that a test file holds", "import sys\nfor m in list(sys.modules.values()):\n    "
                                          "for name in ASKED:\n"
     "        if m is not sys.modules['student'] and hasattr(m, name):\n            "
     "globals()[name] = getattr(m, name)\n"),
    ("import video_attention", "from video_attention import *\n"),
    ("import the kit's oracles", "from tiny_data.course_kit.oracles import *\nfrom "
                                 "tiny_data.course_kit.measure import *\n"),
    ("execute the file of the teacher", "import glob, os\nfor root in ('/home', '/srv', "
                                        "'/course', os.path.expanduser('~')):\n"
     "    for path in glob.glob(root + '/**/video_attention.py', recursive=True)[:3]:\n        "
     "exec(open(path).read())\n"),
    ("the grader's folder by /proc",
     "import os\nexec(open(f'/proc/{os.getppid()}/cwd/video_attention.py').read())\n"),
    ("os.open and the file of the teacher", "import os\nf = "
     "os.open(f'/proc/{os.getppid()}/cwd/video_attention.py', os.O_RDONLY)\n"
     "exec(os.read(f, 10**6))\n"),
    ("torch's own way to open a file", "import os\n"
     "path = f'/proc/{os.getppid()}/cwd/video_attention.py'\n"
     "exec(bytes(torch.from_file(path, size=60000, dtype=torch.uint8).tolist()))\n"),
    ("a process that reads for it", "import subprocess\nexec(subprocess.run(['cat', "
                                    "'/proc/self/cwd/../video_attention.py'], "
     "capture_output=True, text=True).stdout)\n"),
    ("patch torch's comparisons", "torch.equal = torch.allclose = lambda *a, **o: "
                                  "True\ntorch.Tensor.__eq__ = lambda a, b: True\n"
     + STEAL.format("lambda *a, **o: a[0]")),
    ("a tensor that equals everything", "class Yes(torch.Tensor):\n    __eq__ = __le__ = __lt__ = "
                                        "lambda a, b: True\n"
     "    def __sub__(a, b): return a * 0\n    def abs(a): return a * 0\n" + STEAL.format(
         "lambda *a, **o: a[0].as_subclass(Yes)")),
    ("a reply written to every pipe", "import os, json, struct\nfor n in range(1, 12):\n    "
                                      "try:\n        text = json.dumps(dict(tree=dict("
     "value={'is': 1}, macs=0, fused=False, changed=[]), tensors=[])).encode()\n"
     "        os.write(n, struct.pack('<QQ', len(text), 0) + text)\n    except OSError:\n        "
     "pass\n"),
    ("the worker's own functions replaced", "import sys\nmain = "
                                            "sys.modules['__main__']\nmain.equal = lambda *a: "
                                            "True\n"
     "main.describe = lambda e: dict(kind='ValueError', kinds=['ValueError'], text='-1 71 1.5', "
     "blank=None, line=1, inside='x')\n"
     "main.Counter.macs = property(lambda s: 0, lambda s, v: None)\n"
     + STEAL.format("lambda *a, **o: a[0]")),
    ("everything is a ValueError with all numbers", STEAL.format(
        "lambda *a, **o: (_ for _ in ()).throw(ValueError(' '.join(map(str, range(-300, 300)))))")),
    ("the caller's variables", "import sys\ndef look(*a, **o):\n    frame = sys._getframe(1)\n    "
                               "while frame:\n"
     "        for key, value in frame.f_locals.items():\n            if key in ('expected', "
     "'right', 'weight'):\n"
     "                return value\n        frame = frame.f_back\n    return a[0]\n"
     + STEAL.format("look")),
    ("inputs come back", STEAL.format("lambda *a, **o: a[2] if len(a) > 2 and hasattr(a[2], "
                                      "'shape') else a[0]")),
    ("zeros", STEAL.format("lambda *a, **o: torch.zeros_like(a[0])")),
    ("it never comes back",
     "def wait(*a, **o):\n    while True:\n        pass\n" + STEAL.format("wait")),
    ("a memory bomb", STEAL.format("lambda *a, **o: torch.ones(10**12)")),
    ("threads that the counter does not see", "import threading\n" + STEAL.format(
        "lambda *a, **o: threading.Thread(target=print).start()")),
    ("a reload of the handout",
     "import importlib, sys\nimportlib.reload(sys.modules['student'])\n"),
    ("kill the grader", "import os, signal\nos.kill(os.getppid(), signal.SIGTERM)\nos.killpg(0, "
                        "signal.SIGTERM)\n"),
    ("marks written beside", "import glob\nfor path in glob.glob('/tmp/**/marks.csv', "
                             "recursive=True):\n"
     "    open(path, 'w').write('student,100')\n"),
    ("the contract always content", "def shapes(contract):\n    return lambda f: f\ndef "
                                    "require(*a): pass\n"),
    ("given answers by gc", "import gc\nfor x in gc.get_objects():\n    if callable(x) and "
                            "getattr(x, '__name__', '') in ASKED:\n"
     "        globals()[x.__name__] = x\n"),
]

# Files that are odd: (what is odd, name of the file, bytes, what the report or the notes must say)
ODD = [
    ("empty", "a.py", b"", "empty"),
    ("white space", "a.py", b"\n\n   \n", ""),
    ("binary", "a.py", bytes(range(256)) * 20, ""),
    ("a zip", "a.zip", b"PK\x03\x04", "no Python file"),
    ("a notebook", "a.ipynb", b"{\"cells\": []}", "no Python file"),
    ("only a docstring", "a.py", b'"""Nothing yet."""\n', ""),
    ("an infinite loop on import", "a.py", b"while True:\n    pass\n", "did not come back"),
    ("a syntax error in the first line", "a.py",
    b"import torch as\n\ndef attend(q, k, v):\n    return v\n", "no Python"),
    ("text", "a.py", "I did not manage, sorry.\n".encode(), "no Python"),
    ("Python 2", "a.py", b"print 'hello'\n", "no Python"),
    ("deep nesting", "a.py", b"x = " + b"(" * 3000 + b")" * 3000 + b"\n", ""),
    ("an error on import", "a.py", b"import torch\nx = torch.no_such_thing\n", "no_such_thing"),
    ("SystemExit on import", "a.py", b"raise SystemExit(0)\n", "SystemExit"),
    ("KeyboardInterrupt on import", "a.py", b"raise KeyboardInterrupt\n", "KeyboardInterrupt"),
    ("names bound to numbers", "a.py", b"attend = space_attention = time_attention = 3\n", ""),
    ("names deleted", "a.py", b"del attend, shift\n", ""),
    ("functions without parameters", "a.py", b"def attend():\n    pass\n\ndef shift():\n    pass\n",
    "TypeError"),
    ("generators", "a.py", b"def attend(q, k, v, return_weights=False):\n    yield q\n",
    "generator"),
    ("recursion without an end", "a.py", b"def attend(*a, **o):\n    return attend(*a, **o)\n",
    "RecursionError"),
    ("a very long line", "a.py", b"x = '" + b"a" * 500000 + b"'\n", ""),
    ("more than two megabytes", "a.py", b"# " + b"a" * 3 * 10**6 + b"\n", "larger"),
    ("null bytes", "a.py", b"x = 1\x00\n", ""),
    ("torch's random numbers", "a.py",
     b"import torch\ndef attend(q, k, v, return_weights=False):\n    return torch.randn_like(v)\n",
     ""),
    ("errors that are no text", "a.py",
     b"def attend(*a, **o):\n    raise ValueError('\\ud800```\\x1b[31m')\n", "ValueError"),
    ("an error that cannot be printed", "a.py",
    b"class E(Exception):\n    def __str__(self):\n        raise E\n\n"
     b"def attend(*a, **o):\n    raise E\n", ""),
    ("gigabytes printed", "a.py", b"for i in range(10**5):\n    print('x' * 1000)\n", ""),
]
