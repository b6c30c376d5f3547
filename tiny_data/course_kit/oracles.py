"""What the answers must equal: every question once more, slowly, by its definition. Never handed
out.

Written independently of video_attention.py: loops over groups, frames and channels. `how` attends
inside one group and `rule` says what a class token is that is in several groups; wrong ones are
the named mistakes.
"""

import math

import torch


def softmax(q, k, v):
    """Queries (..., I, d), keys (..., J, d), values (..., J, e) -> (..., I, e), by the
    definition.
    """
    return weights(q, k) @ v


def weights(q, k):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    powers = torch.exp(scores - scores.amax(-1, keepdim=True).detach())
    return powers / powers.sum(-1, keepdim=True)


def positions(grid):
    """All (t, y, x), in the order of the tokens."""
    T, H, W = grid
    return [(t, y, x) for t in range(T) for y in range(H) for x in range(W)]


def mean(copies):
    return torch.stack(copies).mean(0)


def in_groups(q, k, v, grid, group, how=softmax, rule=mean, joins=True, keeps=True):
    """Patches with the same group(t, y, x) attend to each other, and to the class token if it
    joins.

    A class token for the clip joins every group, one per frame the groups of its frame, and
    becomes rule(what it is in each of them). With keeps=False it asks, but is no key.
    """
    C = q.shape[2] - math.prod(grid)
    members = {}
    for n, place in enumerate(positions(grid)):
        members.setdefault(group(*place), []).append((n + C, place[0]))
    out, found = torch.zeros_like(v), {c: [] for c in range(C)}
    for patches in members.values():
        frames = {t for n, t in patches}
        mine = [c for c in range(C) if joins and (C == 1 or c in frames)]
        tokens = mine + [n for n, t in patches]
        keys = tokens if keeps else tokens[len(mine) :]
        result = how(q[:, :, tokens], k[:, :, keys], v[:, :, keys])
        out[:, :, tokens[len(mine) :]] = result[:, :, len(mine) :]
        for i, c in enumerate(mine):
            found[c].append(result[:, :, i])
    for c, copies in found.items():
        if copies:
            out[:, :, c] = rule(copies)
    return out


def by_frame(t, y, x):
    return t


def by_place(t, y, x):
    return y, x


def space(q, k, v, grid, **knobs):
    return in_groups(q, k, v, grid, by_frame, **knobs)


def time(q, k, v, grid, how=softmax, **knobs):
    return in_groups(q, k, v, grid, by_place, how=how, **{"joins": False, **knobs})


def halves(first):
    """0 in the first half of n, 1 in the second; of an odd n the first or the second half is the
    larger.
    """
    return lambda i, n: int(i >= (n + (1 if first else 0)) // 2)


def local(q, k, v, grid, larger=(True, True), **knobs):
    row, column = (halves(first) for first in larger)
    return in_groups(q, k, v, grid, lambda t, y, x: (row(y, grid[1]), column(x, grid[2])), **knobs)


def lattices(q, k, v, grid, **knobs):
    return in_groups(q, k, v, grid, lambda t, y, x: (t % 2, y % 2, x % 2), **knobs)


# ==== FRAMES: class tokens copied into every frame ============================================


def to_frames(x, grid):
    """(B, h, C + T*S, d) -> (B, h, T, c + S, d)"""
    T, H, W = grid
    C = x.shape[2] - T * H * W
    patches = x[:, :, C:].unflatten(2, (T, H * W))
    if C == 0:
        return patches
    return torch.cat([x[:, :, :C].expand(-1, -1, T, -1).unsqueeze(3), patches], dim=3)


def from_frames(x, C, rule=mean):
    if C == 0:
        return x.flatten(2, 3)
    first = x[:, :, :, 0]
    first = first if C == x.shape[2] and C != 1 else rule(list(first.unbind(2))).unsqueeze(2)
    return torch.cat([first, x[:, :, :, 1:].flatten(2, 3)], dim=2)


def window(q, k, v, grid, window=1, how=softmax, rule=mean, ends="fewer", ahead=None, behind=None):
    """Mistakes: at the ends frames repeated, wrapped round or zeros; other reaches ahead and
    behind.
    """
    C = q.shape[2] - math.prod(grid)
    T, out = grid[0], []
    ahead, behind = (window if reach is None else reach for reach in (ahead, behind))
    q, k, v = (to_frames(x, grid) for x in (q, k, v))
    for t in range(T):
        wanted = list(range(t - behind, t + ahead + 1))
        frames = {
            "fewer": [s for s in wanted if 0 <= s < T],
            "wrap": [s % T for s in wanted],
            "repeat": [min(T - 1, max(0, s)) for s in wanted],
            "zeros": wanted,
        }[ends]
        of = lambda x: torch.cat(
            [x[:, :, s] if 0 <= s < T else 0 * x[:, :, 0] for s in frames], dim=2
        )
        out.append(how(q[:, :, t], of(k), of(v)))
    return from_frames(torch.stack(out, dim=2), C, rule)


def shift(x, offset, axis, ends="zeros"):
    """Position i gets what was at i + offset. Mistakes: it wraps, keeps its own, or the end is
    repeated.
    """
    n, parts = x.shape[axis], []
    for i in range(n):
        source = i + offset
        own = dict(zeros=None, wrap=source % n, own=i, repeat=min(n - 1, max(0, source)))[ends]
        source = source if 0 <= source < n else own
        parts.append(x.select(axis, 0) * 0 if source is None else x.select(axis, source))
    return torch.stack(parts, dim=axis)


def offsets(window):
    return [sign * i for i in range(1, window + 1) for sign in (1, -1)]


def mix(x, window=1, moved=0.5, ends="zeros", direction=1, order=offsets, share=None):
    """x (B, T, h, L, d), channel by channel."""
    B, T, h, L, d = x.shape
    steps = order(window)
    if share is None:
        share = int(moved * d / max(1, len(steps)) + 1e-6)
    channels = []
    for c in range(d):
        part = c // share if share else len(steps)
        step = direction * steps[part] if part < len(steps) else 0
        channels.append(shift(x[..., c], step, 1, ends))
    return torch.stack(channels, dim=-1)


def mix_frames(x, T, window=1, moved=0.5, **knobs):
    return mix(x.unflatten(0, (-1, T)), window, moved, **knobs).flatten(0, 1)


def mixing(
    q,
    k,
    v,
    grid,
    window=1,
    moved=0.5,
    summary=False,
    how=softmax,
    rule=mean,
    keys=True,
    values=True,
    summaries="plain",
    **knobs
):
    """Mistakes: keys or values not mixed; the summaries mixed, or the class token among them."""
    T, C = grid[0], q.shape[2] - math.prod(grid)
    q, k, v = (to_frames(x, grid) for x in (q, k, v))
    blend = lambda x: mix(x.transpose(1, 2), window, moved, **knobs).transpose(1, 2)
    k_mixed, v_mixed = blend(k) if keys else k, blend(v) if values else v
    out = []
    for t in range(T):
        parts = [[k_mixed[:, :, t]], [v_mixed[:, :, t]]]
        for part, x, mixed in zip(parts, (k, v), (k_mixed, v_mixed)):
            if summary:
                source = mixed if summaries == "mixed" else x
                first = 0 if summaries == "with class token" else min(C, 1)
                means = source[:, :, :, first:].mean(3)
                part.append(means[:, :, t : t + 1] if summaries == "own" else means)
        out.append(how(q[:, :, t], *(torch.cat(part, dim=2) for part in parts)))
    return from_frames(torch.stack(out, dim=2), C, rule)


def shift_to_neighbours(x, grid, steps, share, corners="own", edges="zeros", swap=None, sign=1):
    """x (B, h, T*S, d); the channels of the heads joined, head by head. One position after the
    other.
    """
    T, H, W = grid
    B, h, N, d = x.shape
    joined = x.transpose(1, 2).reshape(B, T, H, W, h * d)
    parts = []
    for i, step in enumerate(steps):
        part, rule = joined[..., i * share : (i + 1) * share], (
            corners if step_is_diagonal(step) else edges
        )
        step = swap(step) if swap else step
        rows = []
        for t, y, x_ in positions(grid):
            place = [a + sign * b for a, b in zip((t, y, x_), step)]
            inside = all(0 <= a < n for a, n in zip(place, grid))
            if inside:
                rows.append(part[:, place[0], place[1], place[2]])
            elif rule == "wrap":
                rows.append(part[:, place[0] % T, place[1] % H, place[2] % W])
            else:
                rows.append(part[:, t, y, x_] * (1 if rule == "own" else 0))
        parts.append(torch.stack(rows, dim=1))
    parts.append(joined[..., len(steps) * share :].flatten(1, 3))
    return torch.cat(parts, dim=2).unflatten(2, (h, d)).transpose(1, 2)


def step_is_diagonal(step):
    return sum(part != 0 for part in step) > 1


# ==== PROTOTYPES ==============================================================================


def greedy(
    x,
    count,
    start=0,
    criterion="cosine",
    choose=min,
    absolute=True,
    normalise=None,
    combine=None,
    half=False,
):
    """The most orthogonal subset of each x (..., n, d), by trying every candidate at every step.

    None if two candidates are so alike anywhere that rounding could decide.
    """
    normalise = criterion == "cosine" if normalise is None else normalise
    combine = combine or (max if criterion == "cosine" else sum)
    picks = []
    for vectors in x.reshape(-1, *x.shape[-2:]):
        unit = vectors / vectors.norm(dim=-1, keepdim=True) if normalise else vectors
        table = (
            vectors @ (vectors / vectors.norm(dim=-1, keepdim=True)).mT if half else unit @ unit.mT
        )
        table = (table.abs() if absolute else table).tolist()
        picked = [start]
        while len(picked) < count:
            score = {
                i: combine(table[i][j] for j in picked)
                for i in range(len(table))
                if i not in picked
            }
            best = choose(score, key=score.get)
            if sum(abs(score[i] - score[best]) < 2e-5 for i in score) > 1:
                return None
            picked.append(best)
        picks.append(picked)
    return torch.tensor(picks).reshape(*x.shape[:-2], count)


def orthoformer(q, k, v, grid, prototypes, how=softmax, again=None):
    return (again or how)(q, prototypes, how(prototypes, k, v))


# ==== LINEAR ==================================================================================


def features(x, floor=None):
    return x.clamp(min=0) + (x.shape[-1] ** -0.5 if floor is None else floor)


def linearly(q, k, v, eps=1e-6):
    """The weights written out: q_i . k_j, rows divided by their sum."""
    table = q @ k.mT
    return table @ v / (table.sum(-1, keepdim=True) + eps)


# ==== TRAJECTORY ==============================================================================


def per_frame(q, k, v, T, how=softmax, at_once=False):
    """(B, h, I, T, d). A mistake: one softmax over all frames."""
    k, v = (x.unflatten(2, (T, -1)) for x in (k, v))
    if not at_once:
        return torch.stack([how(q, k[:, :, t], v[:, :, t]) for t in range(T)], dim=3)
    table = weights(q, k.flatten(2, 3)).unflatten(3, (T, -1))
    return torch.stack([table[:, :, :, t] @ v[:, :, t] for t in range(T)], dim=3)


def along(
    y, proj_q, proj_kv, own=None, values=True, width=None, scale=None, joined="h d", swap=False
):
    """(B, h, T*S, T, d) -> (out, weights). Each layer is a function of the heads joined.

    Mistakes: the query from another frame than its own; y~ as value; scaled by another width;
    heads joined in another order; keys and values swapped.
    """
    B, h, N, T, d = y.shape
    if joined == "h d":
        together = y.permute(0, 2, 3, 1, 4).flatten(3)  # (B, N, T, D)
    else:
        together = y.permute(0, 2, 3, 4, 1).flatten(3)
    out, paid = [], []
    for n in range(N):
        t = n // (N // T) if own is None else own(n, N, T)
        query = proj_q(together[:, n, t]).unflatten(-1, (h, d)).unsqueeze(2)  # (B, h, 1, d)
        k, v = proj_kv(together[:, n]).chunk(2, dim=-1)
        k, v = (v, k) if swap else (k, v)
        v = v if values else together[:, n]
        k, v = (x.unflatten(-1, (h, d)).transpose(1, 2) for x in (k, v))  # (B, h, T, d)
        factor = scale if scale is not None else ((width or d) ** -0.5) * d**0.5
        table = weights(factor * query, k)
        paid.append(table)
        out.append((table @ v).squeeze(2))
    return torch.stack(out, dim=2), torch.stack(paid, dim=2)


def trajectory(
    q,
    k,
    v,
    grid,
    proj_q,
    proj_kv,
    how=softmax,
    at_once=False,
    to_all=True,
    keys="patches",
    first=None,
    second=None,
    **knobs
):
    """Mistakes: a class token that attends to patches only; patches that attend to it in every
    frame.
    """
    C = q.shape[2] - math.prod(grid)
    start = 0 if to_all else C
    class_tokens = how(q[:, :, :C], k[:, :, start:], v[:, :, start:]) if C else q[:, :, :0]
    if first is not None:
        y = first(q[:, :, C:], k[:, :, C:], v[:, :, C:], grid[0])
    elif keys == "patches":
        y = per_frame(q[:, :, C:], k[:, :, C:], v[:, :, C:], grid[0], how, at_once)
    else:
        k, v = (to_frames(x, grid).flatten(2, 3) for x in (k, v))
        y = per_frame(q[:, :, C:], k, v, grid[0], how)
    out = second(y, proj_q, proj_kv) if second else along(y, proj_q, proj_kv, **knobs)[0]
    return torch.cat([class_tokens, out], dim=2)
