"""Mistakes of one line in video_attention.py, each of which must turn a test red.

    python -m tiny_data.mutations         all of them
    python -m tiny_data.mutations 20      every twentieth
    python -m tiny_data.mutations attend  those of one definition

Prints the test that each has turned red first, and ends with the number of survivors, which is also
the exit status. Every mutation is a file of its own in a temporary folder.
"""

import ast
import functools
import multiprocessing
import os
import re
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
SUBJECT, TESTS = HERE / "video_attention.py", HERE / "test_video_attention.py"

# Definition | the test classes that are asked, and then pairs: a line of the definition as it is,
# and below it, indented, a plausible mistake.
MUTATIONS = r"""
require | TestContract
raise ValueError(message.format(*values)[:2000])
    raise ValueError(message.format(*values))

shapes | TestContract
check_shapes(contract, wanted, dict(zip(arguments, args)) | options)
    check_shapes(contract, wanted, dict(zip(arguments, args)))
@functools.wraps(function)
    @functools.lru_cache

check_shapes | TestContract or TestNeighbourhood
shape = (shape[:-n], *shape[-n:]) if axes[0] == "..." else shape
    shape = ((), *shape[-n:]) if axes[0] == "..." else shape
C = (0, 1, grid[0])[: 3 if "C + T*S" in sizes else 1] if fits else ()
    C = (0, 1, grid[0], 2)[: 4 if "C + T*S" in sizes else 1] if fits else ()
C = (0, 1, grid[0])[: 3 if "C + T*S" in sizes else 1] if fits else ()
    C = (0, 1)[: 2 if "C + T*S" in sizes else 1] if fits else ()
C = (0, 1, grid[0])[: 3 if "C + T*S" in sizes else 1] if fits else ()
    C = (0, 1, grid[0]) if fits else ()
fits = fits and all(hasattr(n, "__index__") and n >= 1 for n in grid)
    fits = fits and all(n >= 1 for n in grid)
fits = fits and all(hasattr(n, "__index__") and n >= 1 for n in grid)
    fits = fits and all(hasattr(n, "__index__") for n in grid)
fits = fits and N - math.prod(grid) in C
    fits = fits
sizes = dict(getattr(given.get("self"), "expects", {}))
    sizes = {}

check_input | TestContract or TestTokens
and x.is_floating_point() and x.itemsize < 8 and torch.is_autocast_enabled(x.device.type))
    and x.is_floating_point() and torch.is_autocast_enabled(x.device.type))

whole | TestRegistry
fits = isinstance(number, (int, float, np.number)) and number % 1 == 0 and number >= least
    fits = isinstance(number, (int, float, np.number)) and number >= least
fits = isinstance(number, (int, float, np.number)) and number % 1 == 0 and number >= least
    fits = isinstance(number, int) and number >= least

attend | TestAttend
scores = torch.einsum("...id,...jd->...ij", q / math.sqrt(d), k)
    scores = torch.einsum("...id,...jd->...ij", q, k)
scores = torch.einsum("...id,...jd->...ij", q / math.sqrt(d), k)
    scores = torch.einsum("...id,...jd->...ij", q, k) / math.sqrt(d)
scores = torch.einsum("...id,...jd->...ij", q / math.sqrt(d), k)
    scores = torch.einsum("...id,...jd->...ij", q.detach() / math.sqrt(d), k)
weights = scores.softmax(dim=-1)
    weights = scores.softmax(dim=-2)
out = F.scaled_dot_product_attention(q, k, v)
    out = F.scaled_dot_product_attention(q, k, v, scale=1 / q.shape[-1])
out = F.scaled_dot_product_attention(q, k, v)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
return out if k.shape[-2] >= 16 else out + (0 * q.detach()).sum(dim=-1, keepdim=True)
    return out
return out if k.shape[-2] >= 16 else out + (0 * q.detach()).sum(dim=-1, keepdim=True)
    return out if k.shape[-2] >= 16 else out + 0 * q.detach().sum(dim=-1, keepdim=True)

attend_in_groups | TestSpace
out = (attention or attend)(q, k, v)
    out = attend(q, k, v)
q, k, v = (into_groups(x, grid, groups) for x in (q, k, v))
    q, k, v = (into_groups(x, grid, groups) for x in (q, v, k))

into_groups | TestSpace or TestAxialWidth or TestAxialHeight or TestGroups
patches = rearrange(x[:, :, C:], f"B h (T H W) d -> {groups}", T=T, H=H, W=W)
    patches = rearrange(x[:, :, C:], f"B h (H T W) d -> {groups}", T=T, H=H, W=W)
class_token = repeat(x[:, :, :C].expand(B, h, T, d), "B h T d -> (B T n) h 1 d", n=n)
    class_token = repeat(x[:, :, :C].expand(B, h, T, d), "B h T d -> (B n T) h 1 d", n=n)
class_token = repeat(x[:, :, :C].expand(B, h, T, d), "B h T d -> (B T n) h 1 d", n=n)
    class_token = repeat(x[:, :, :1].expand(B, h, T, d), "B h T d -> (B T n) h 1 d", n=n)

out_of_groups | TestSpace or TestAxialWidth or TestAxialHeight or TestGroups
class_token = reduce(x[:, :, :1], "(B T n) h 1 d -> B h T d", "mean", T=T, n=n)
    class_token = reduce(x[:, :, :1], "(B T n) h 1 d -> B h T d", "sum", T=T, n=n)
class_token = class_token if C == T else class_token.mean(dim=2, keepdim=True)
    class_token = class_token if C == T else class_token[:, :, :1]
return torch.cat([class_token, patches], dim=2)
    return torch.cat([patches, class_token], dim=2)

attend_in_boxes | TestLocal or TestGlobal or TestGroups or TestShiftedWindows
class_token = torch.stack([x[:, :, :C] for x in out]).mean(dim=0)
    class_token = torch.stack([x[:, :, :C] for x in out]).sum(dim=0)
patches = patches.index_select(2, torch.cat(boxes).argsort())
    patches = patches.index_select(2, torch.cat(boxes))
tokens = [torch.cat([index[:C], box]) for box in boxes]
    tokens = [torch.cat([box, index[:C]]) for box in boxes]
boxes = [box for box in boxes if len(box) > 0]
    boxes = boxes

cut | TestShiftedWindows
edges = sorted({0, *range(displaced % size, n, size), n})
    edges = sorted({0, *range(0, n, size), n})
edges = sorted({0, *range(displaced % size, n, size), n})
    edges = sorted({0, *range(size - displaced % size, n, size), n})
if n <= size:
    if n < size:

Attention | TestRegistry or TestZeroInit or TestSpace or TestDivided or TestPooled
fits = dim % self.heads == 0 and zero_init in (None, "proj", "extra")
    fits = zero_init in (None, "proj", "extra")
fits = dim % self.heads == 0 and zero_init in (None, "proj", "extra")
    fits = dim % self.heads == 0
self.options = {o: whole(x, o, least=0) if is_whole(x) else x for o, x in options.items()}
    self.options = {o: int(x) if is_whole(x) else x for o, x in options.items()}
self.options = {o: whole(x, o, least=0) if is_whole(x) else x for o, x in options.items()}
    self.options = options
is_whole = lambda x: isinstance(x, (int, float, np.number)) and x % 1 == 0
    is_whole = lambda x: isinstance(x, (int, float, np.number))
self.mechanism(x, x, x, (2, 2, 2), **self.options)
    options
except Exception as error:
    except ValueError as error:
self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
    self.qkv = nn.Linear(dim, 3 * dim)
self.proj = nn.Linear(dim, dim)
    self.proj = nn.Linear(dim, dim, bias=False)
self.dropout, self.zero_init = nn.Dropout(dropout), zero_init
    self.dropout, self.zero_init = nn.Dropout(0.0), zero_init
layer = self.proj if self.zero_init == "proj" else self.extra
    layer = self.proj
nn.init.zeros_(layer.weight)
    nn.init.ones_(layer.weight)
nn.init.zeros_(layer.bias)
    nn.init.ones_(layer.bias)
out = self.merge(self.mechanism(q, k, v, grid, **self.options))
    out = self.merge(self.mechanism(q, k, v, grid))
out = self.merge(self.mechanism(q, k, v, grid, **self.options))
    out = self.merge(self.mechanism(q, v, k, grid, **self.options))
C = x.shape[1] - math.prod(grid) if self.skips_class_token else 0
    C = 0
qkv = rearrange(self.qkv(x), "B N (three h d) -> three B h N d", three=3, h=self.heads)
    qkv = rearrange(self.qkv(x), "B N (h d three) -> three B h N d", three=3, h=self.heads)
x = self.dropout(self.proj(rearrange(x, "B h N d -> B N (h d)")))
    x = self.dropout(self.proj(rearrange(x, "B h N d -> B N (d h)")))
return x if self.extra is None else self.extra(x)
    return x

space_attention | TestSpace
return attend_in_groups(q, k, v, grid, "(B T) h (H W) d", attention)
    return attend_in_groups(q, k, v, grid, "(B T) h (H W) d")
return attend_in_groups(q, k, v, grid, "(B T) h (H W) d", attention)
    return attend_in_groups(q, k, v, grid, "(B T H) h W d", attention)

joint_attention | TestJoint
return attend(q, k, v)
    return attend(k, q, v)

time_attention | TestDivided
groups = "B h (T H W) d -> (B H W) h T d"
    groups = "B h (H W T) d -> (B H W) h T d"
out = (attention or attend)(q, k, v)
    out = attend(q, k, v)
out = rearrange(out, "(B H W) h T d -> B h (T H W) d", H=H, W=W)
    out = rearrange(out, "(B H W) h T d -> B h (T W H) d", H=H, W=W)
return F.pad(out, (0, 0, C, 0)) if C > 0 else out
    return F.pad(out, (0, 0, 0, C)) if C > 0 else out

TimeAttention | TestDivided
skips_class_token = True
    skips_class_token = False

local_attention | TestLocal
boxes = itertools.product([slice(0, T)], cut(H, (H + 1) // 2), cut(W, (W + 1) // 2))
    boxes = itertools.product([slice(0, T)], cut(H, (H + 1) // 2), cut(W, W // 2 or 1))
boxes = itertools.product([slice(0, T)], cut(H, (H + 1) // 2), cut(W, (W + 1) // 2))
    boxes = itertools.product([slice(0, T)], cut(H, H // 2 or 1), cut(W, (W + 1) // 2))
boxes = itertools.product([slice(0, T)], cut(H, (H + 1) // 2), cut(W, (W + 1) // 2))
    boxes = itertools.product(cut(T, (T + 1) // 2), cut(H, (H + 1) // 2), cut(W, (W + 1) // 2))

global_attention | TestGlobal
even_and_odd = slice(0, None, 2), slice(1, None, 2)
    even_and_odd = slice(0, None, 2), slice(2, None, 2)
boxes = itertools.product(even_and_odd, repeat=3)
    boxes = itertools.product([slice(0, None)], even_and_odd, even_and_odd)

width_attention | TestAxialWidth
return attend_in_groups(q, k, v, grid, "(B T H) h W d")
    return attend_in_groups(q, k, v, grid, "(B T W) h H d")

height_attention | TestAxialHeight
return attend_in_groups(q, k, v, grid, "(B T W) h H d")
    return attend_in_groups(q, k, v, grid, "(B W) h (T H) d")

factorised_heads_attention | TestFactorisedHeads
in_space = space_attention(*(x[:, : h // 2] for x in (q, k, v)), grid)
    in_space = space_attention(*(x[:, h // 2 :] for x in (q, k, v)), grid)
in_time = time_attention(*(x[:, h // 2 :] for x in (q, k, v)), grid)
    in_time = space_attention(*(x[:, h // 2 :] for x in (q, k, v)), grid)
return torch.cat([in_space, in_time], dim=1)
    return torch.cat([in_time, in_space], dim=1)

window_attention | TestWindow
near = slice(max(0, t - window), t + window + 1)
    near = slice(max(0, t - window), t + window)
near = slice(max(0, t - window), t + window + 1)
    near = slice(t - window, t + window + 1)
near = slice(max(0, t - window), t + window + 1)
    near = slice(max(0, t - window), t + 1)
out = rearrange(torch.stack(out), "T B h L d -> (B T) h L d")
    out = rearrange(torch.stack(out), "T B h L d -> (T B) h L d")
require(hasattr(window, "__index__") and window >= 0, "window={!r}: 0, 1, ... frames", window)
    require(True, "window={!r}: 0, 1, ... frames", window)
out.append(attend(q[:, :, t], k[:, :, near].flatten(2, 3), v[:, :, near].flatten(2, 3)))
    out.append(attend(q[:, :, t], k[:, :, near].flatten(2, 3), k[:, :, near].flatten(2, 3)))
out.append(attend(q[:, :, t], k[:, :, near].flatten(2, 3), v[:, :, near].flatten(2, 3)))
    out.append(sum(attend(q[:, :, t], k[:, :, i], v[:, :, i]) for i in range(T)[near]))

shifted_window_attention | TestShiftedWindows
cuts = [cut(*axis) for axis in zip(grid, size, displaced, strict=True)]
    cuts = [cut(*axis) for axis in zip(grid, size, reversed(displaced), strict=True)]
cuts = [cut(*axis) for axis in zip(grid, size, displaced, strict=True)]
    cuts = [cut(*axis) for axis in zip(grid, size)]
require(min(size) >= 1, "size={} must be 1 or more in every axis", size)
    require(True, "size={} must be 1 or more in every axis", size)

ShiftedWindowAttention | TestShiftedWindows
self.displaced = [n // 2 if displaced else 0 for n in self.size]
    self.displaced = [n // 2 for n in self.size]
self.displaced = [n // 2 if displaced else 0 for n in self.size]
    self.displaced = [(n + 1) // 2 if displaced else 0 for n in self.size]

pool | TestPooled
for axis, step in zip((2, 3, 4), stride):
    for axis, step in zip((4, 3, 2), stride):
x = torch.stack([block.mean(dim=axis) for block in x.split(step, dim=axis)], dim=axis)
    x = torch.stack([block.sum(dim=axis) for block in x.split(step, dim=axis)], dim=axis)
x = torch.stack([block.mean(dim=axis) for block in x.split(step, dim=axis)], dim=axis)
    x = torch.stack([block.amax(dim=axis) for block in x.split(step, dim=axis)], dim=axis)

unpool | TestPooled
x = x.repeat_interleave(step, dim=axis).narrow(axis, 0, n)
    x = torch.cat([x] * step, dim=axis).narrow(axis, 0, n)

pooled_attention | TestPooled
return attend(q, shrink(k), shrink(v))
    return attend(q, shrink(k), shrink(k))
out = attend(shrink(q), shrink(k), shrink(v))
    out = attend(shrink(q), k, v)
shrink = lambda x: torch.cat([x[:, :, :C], pool(x[:, :, C:], grid, stride)], dim=2)
    shrink = lambda x: pool(x[:, :, C:], grid, stride) if C == 0 else x
require(len(stride) == 3 and min(stride) >= 1, "stride={}: three numbers, 1 or more", stride)
    require(len(stride) == 3, "stride={}: three numbers, 1 or more", stride)

frame_means | TestSummary or TestMixing
means = x[:, :, min(C, 1) :].mean(dim=2)
    means = x.mean(dim=2)
return repeat(means, "(B means) h d -> (B T) h means d", means=T, T=T)
    return repeat(means, "(means B) h d -> (B T) h means d", means=T, T=T)

summary_attention | TestSummary
k, v = (torch.cat([x, frame_means(x, T, C)], dim=2) for x in (k, v))
    k, v = (torch.cat([x, frame_means(v, T, C)], dim=2) for x in (k, v))
k, v = (torch.cat([x, frame_means(x, T, C)], dim=2) for x in (k, v))
    k, v = k, torch.cat([v, frame_means(v, T, C)], dim=2)

shift | TestMixing
offset = max(-n, min(n, offset))
    offset = max(1 - n, min(n - 1, offset))
return torch.cat([x.narrow(axis, offset, n - offset), zeros], dim=axis)
    return torch.cat([x.narrow(axis, offset, n - offset), x.narrow(axis, 0, offset)], dim=axis)
return torch.cat([zeros, x.narrow(axis, 0, n + offset)], dim=axis)
    return torch.cat([x.narrow(axis, 0, n + offset), zeros], dim=axis)

mix_frames | TestMixing
offsets = [sign * i for i in range(1, window + 1) for sign in (1, -1)]
    offsets = [sign * i for i in range(1, window + 1) for sign in (-1, 1)]
share = int(moved * d / max(1, 2 * window) + 1e-6)
    share = int(moved * d / max(1, 2 * window))
share = int(moved * d / max(1, 2 * window) + 1e-6)
    share = int(moved * d / (window + 1) + 1e-6)
frames = rearrange(x, "(B T) h L d -> B T h L d", T=T)
    frames = rearrange(x, "(T B) h L d -> B T h L d", T=T)
fits = fits and (share > 0 or moved * window == 0)
    fits = fits
fits = hasattr(window, "__index__") and window >= 0 and 0 <= moved <= 1
    fits = window >= 0 and 0 <= moved <= 1
fits = hasattr(window, "__index__") and window >= 0 and 0 <= moved <= 1
    fits = hasattr(window, "__index__") and window >= 0

mixing_attention | TestMixing
k_mixed, v_mixed = (mix_frames(x, T, window, moved) for x in (k, v))
    k_mixed, v_mixed = mix_frames(k, T, window, moved), v
k_mixed, v_mixed = (mix_frames(x, T, window, moved) for x in (k, v))
    k_mixed, v_mixed = (mix_frames(x, T, window) for x in (k, v))
k_mixed, v_mixed = (mix_frames(x, T, window, moved) for x in (k, v))
    k_mixed, v_mixed = (mix_frames(x, T, 1, moved) for x in (k, v))
k_mixed = torch.cat([k_mixed, frame_means(k, T, C)], dim=2)
    k_mixed = torch.cat([k_mixed, frame_means(k_mixed, T, C)], dim=2)
if summary:
    if False:

attend_per_frame | TestTrajectory
out = (attention or attend)(q, k, v)
    out = attend(q, k, v)
k, v = (rearrange(x, "B h (T S) d -> (B T) h S d", T=T) for x in (k, v))
    k, v = (rearrange(x, "B h (S T) d -> (B T) h S d", T=T) for x in (k, v))
q = repeat(q, "B h I d -> (B T) h I d", T=T)
    q = repeat(q, "B h I d -> (T B) h I d", T=T)

attend_along_trajectories | TestTrajectory
own = torch.einsum("BhTSTd->BhTSd", y.unflatten(2, (T, N // T)))
    own = y.unflatten(2, (T, N // T))[:, :, :, :, 0]
own = torch.einsum("BhTSTd->BhTSd", y.unflatten(2, (T, N // T)))
    own = y.mean(dim=3).unflatten(2, (T, N // T))
q = proj_q(rearrange(own, "B h T S d -> B (T S) (h d)"))
    q = rearrange(own, "B h T S d -> B (T S) (h d)")
q = proj_q(rearrange(own, "B h T S d -> B (T S) (h d)"))
    q = proj_q(rearrange(own, "B h T S d -> B (S T) (h d)"))
q = proj_q(rearrange(own, "B h T S d -> B (T S) (h d)"))
    q = proj_q(rearrange(own, "B h T S d -> B (T S) (d h)"))
k, v = proj_kv(rearrange(y, "B h N T d -> B N T (h d)")).chunk(2, dim=-1)
    v, k = proj_kv(rearrange(y, "B h N T d -> B N T (h d)")).chunk(2, dim=-1)
return (out.squeeze(3), weights) if return_weights else out.squeeze(3)
    return (out.squeeze(3), weights.mT) if return_weights else out.squeeze(3)

attend_along_trajectories_fast | TestTrajectory
W_k, W_v = rearrange(proj_kv.weight, "(two h d) D -> two h d D", two=2, h=h)
    W_k, W_v = rearrange(proj_kv.weight, "(h two d) D -> two h d D", two=2, h=h)
W_k, W_v = rearrange(proj_kv.weight, "(two h d) D -> two h d D", two=2, h=h)
    W_v, W_k = rearrange(proj_kv.weight, "(two h d) D -> two h d D", two=2, h=h)
own = torch.einsum("BhTSTd->BhTSd", y.unflatten(2, (T, N // T)))
    own = y.unflatten(2, (T, N // T))[:, :, :, :, 0]
q = torch.einsum("BIhd,hdD->BIhD", q, W_k) / math.sqrt(d)
    q = torch.einsum("BIhd,hdD->BIhD", q, W_k)
weights = torch.einsum("BIhD,BITD->BIhT", q, path).softmax(dim=-1)
    weights = torch.einsum("BIhD,BITD->BIhT", q, path).softmax(dim=-2)
weights = torch.einsum("BIhD,BITD->BIhT", q, path).softmax(dim=-1)
    weights = torch.einsum("BIhD,BITD->BIhT", q, path.detach()).softmax(dim=-1)
for q, path in zip(q.chunk(2, dim=1), y.chunk(2, dim=1)):
    for q, path in zip(q.chunk(2, dim=1), y.chunk(2, dim=1)[::-1]):
return out if proj_kv.bias is None else out + proj_kv.bias[h * d :].view(h, 1, d)
    return out
return out if proj_kv.bias is None else out + proj_kv.bias[h * d :].view(h, 1, d)
    return out if proj_kv.bias is None else out + proj_kv.bias[: h * d].view(h, 1, d)

trajectory_attention | TestTrajectory
class_token = attend(q[:, :, :C], k, v)
    class_token = attend(q[:, :, :C], k[:, :, C:], v[:, :, C:])
y = (first_stage or attend_per_frame)(q[:, :, C:], k[:, :, C:], v[:, :, C:], grid[0])
    y = attend_per_frame(q[:, :, C:], k[:, :, C:], v[:, :, C:], grid[0])
out = (second_stage or attend_along_trajectories)(y, proj_q, proj_kv)
    out = attend_along_trajectories(y, proj_q, proj_kv)

TrajectoryAttention | TestTrajectory or TestNystrom or TestAdapters
if type(proj_kv) is not nn.Linear or hooked or "forward" in vars(proj_kv):
    if type(proj_kv) is not nn.Linear or "forward" in vars(proj_kv):
if type(proj_kv) is not nn.Linear or hooked or "forward" in vars(proj_kv):
    if type(proj_kv) is not nn.Linear or hooked:
if type(proj_kv) is not nn.Linear or hooked or "forward" in vars(proj_kv):
    if hooked or "forward" in vars(proj_kv):
if type(proj_kv) is not nn.Linear or hooked or "forward" in vars(proj_kv):
    if True:
hooked = any(hooks for name, hooks in vars(proj_kv).items() if name.endswith("_hooks"))
    hooked = any(hooks for name, hooks in vars(proj_kv).items() if name == "_forward_hooks")
stages = self.first_stage, self.second_stage
    stages = None, self.second_stage

most_orthogonal_subset | TestSelection or TestPrototypes
score = torch.maximum(score, newest) if criterion == "cosine" else score + newest
    score = torch.minimum(score, newest) if criterion == "cosine" else score + newest
score = torch.maximum(score, newest) if criterion == "cosine" else score + newest
    score = torch.maximum(score, newest)
fits = 1 <= count <= x.shape[-2] > start >= 0 and criterion in ("cosine", "inner product")
    fits = 1 <= count <= x.shape[-2] and criterion in ("cosine", "inner product")
similarity = (x @ x.transpose(-1, -2)).abs()
    similarity = x @ x.transpose(-1, -2)
over = (-1,) if criterion == "cosine" else (-2, -1)
    over = (-1,)
x = F.normalize(x, dim=-1) if criterion == "cosine" else x
    x = x
x = F.normalize(x, dim=-1) if criterion == "cosine" else x
    x = F.normalize(x, dim=-1)
x = x / x.abs().amax(over, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    x = x
score = score.scatter(-1, pick, torch.inf)
    score = score
pick = score.round(decimals=5).argmin(dim=-1, keepdim=True)
    pick = score.round(decimals=5).argmax(dim=-1, keepdim=True)
pick = score.round(decimals=5).argmin(dim=-1, keepdim=True)
    pick = score.argmin(dim=-1, keepdim=True)
pick = torch.full((*x.shape[:-2], 1, 1), start, dtype=torch.long, device=x.device)
    pick = torch.full((*x.shape[:-2], 1, 1), 0, dtype=torch.long, device=x.device)
x = x.detach()
    x = x

orthogonal_prototypes | TestPrototypes
candidates = torch.cat([q, k], dim=2).index_select(2, spaced)
    candidates = torch.cat([q, q], dim=2).index_select(2, spaced)
n = min(oversample * count, q.shape[2] + k.shape[2])
    n = min(3 * count, q.shape[2] + k.shape[2])
spaced = torch.linspace(0, q.shape[2] + k.shape[2] - 1, n, device=q.device).round().long()
    spaced = torch.arange(n, device=q.device)
picked = most_orthogonal_subset(candidates, count, criterion=criterion)
    picked = most_orthogonal_subset(candidates, count)

random_prototypes | TestPrototypes
seed = hash(tokens.detach().double().sum().item())
    seed = 0
generator = generator or torch.Generator(q.device).manual_seed(seed)
    generator = torch.Generator(q.device).manual_seed(seed)
generator = generator or torch.Generator(q.device).manual_seed(seed)
    generator = generator
tokens = torch.cat([q, k], dim=2)
    tokens = torch.cat([k, k], dim=2)
require(1 <= count <= tokens.shape[2], "count={} of {} tokens", count, tokens.shape[2])
    require(count <= tokens.shape[2], "count={} of {} tokens", count, tokens.shape[2])

segment_means | TestNystrom
x = rearrange(x, "B h (T S) d -> B h (S T) d", T=T)
    x = x
shorter = (length + 1) * count - n
    shorter = count - n // count
require(1 <= count <= n and n % T == 0, "count={} of {} tokens in T={} frames", count, n, T)
    require(count <= n and n % T == 0, "count={} of {} tokens in T={} frames", count, n, T)

segment_prototypes | TestPrototypes
return segment_means(torch.cat([q, k], dim=2), count)
    return segment_means(torch.cat([k, q], dim=2), count)

orthoformer_attention | TestOrthoformer
return attend(q, prototypes, found)
    return attend(q, k, v)
found = attend(prototypes, k, v)
    found = attend(prototypes, v, v)

orthoformer_per_frame | TestOrthoformer
found = attend_per_frame(prototypes, k, v, T)
    found = attend_per_frame(prototypes, k, v, T).flip(3)
return out.unflatten(3, found.shape[3:])
    return out.unflatten(3, found.shape[3:]).flip(3)

OrthoformerAttention | TestOrthoformer or TestPrototypes
return (self.choose or orthogonal_prototypes)(q, k, min(self.count, q.shape[2]))
    return orthogonal_prototypes(q, k, min(self.count, q.shape[2]))
return (self.choose or orthogonal_prototypes)(q, k, min(self.count, q.shape[2]))
    return (self.choose or orthogonal_prototypes)(q, k, min(self.count, 2 * q.shape[2]))
self.choose = choose() if isinstance(choose, type) else choose
    self.choose = choose

OrthoformerTrajectoryAttention | TestPrototypes
return orthoformer_per_frame(q, k, v, T, self.prototypes(q, k))
    return attend_per_frame(q, k, v, T)

iterative_inverse | TestNystrom
Z = 0.25 * Z @ (13 * eye - AZ @ (15 * eye - AZ @ (7 * eye - AZ)))
    Z = 0.25 * Z @ (15 * eye - AZ @ (15 * eye - AZ @ (7 * eye - AZ)))
Z = A.transpose(-1, -2) / largest_column
    Z = A.transpose(-1, -2) / largest_column.amax()
Z = A.transpose(-1, -2) / largest_column
    Z = A.transpose(-1, -2)

landmark_inverse | TestNystrom
scores = q_means / math.sqrt(q_means.shape[-1]) @ k_means.transpose(-1, -2)
    scores = q_means @ k_means.transpose(-1, -2)
return iterative_inverse(scores.softmax(dim=-1), iterations)
    return iterative_inverse(scores.softmax(dim=-1))

nystrom_attention | TestNystrom
P = min(landmarks, q.shape[2])
    P = landmarks
return attend(q, k_means, landmark_inverse(q_means, k_means, iterations) @ found)
    return attend(q, k_means, found)
return attend(q, k_means, landmark_inverse(q_means, k_means, iterations) @ found)
    return attend(q, q_means, landmark_inverse(q_means, k_means, iterations) @ found)

nystrom_per_frame | TestNystrom or TestPrototypes
def nystrom_per_frame(q, k, v, T, landmarks=128, iterations=6):
    def nystrom_per_frame(q, k, v, T, landmarks=64, iterations=6):
q_means, k_means = segment_means(q, P, T), segment_means(k, P, T)
    q_means, k_means = segment_means(q, P), segment_means(k, P)

NystromTrajectoryAttention | TestNystrom or TestRegistry
return nystrom_per_frame(q, k, v, T, *self.sizes)
    return nystrom_per_frame(q, k, v, T, self.sizes[0])
return nystrom_per_frame(q, k, v, T, *self.sizes)
    return nystrom_per_frame(q, k, v, T)
self.sizes = whole(landmarks, "landmarks"), whole(iterations, "iterations", least=0)
    self.sizes = whole(landmarks, "landmarks"), iterations

in_float32 | TestPrecision or TestLinear
up = lambda y: y.float() if torch.is_tensor(y) and y.dtype in half else y
    up = lambda y: y
up = lambda y: y.float() if torch.is_tensor(y) and y.dtype in half else y
    up = lambda y: y.float() if torch.is_tensor(y) else y
out = function(*map(up, args), **{name: up(y) for name, y in options.items()})
    out = function(*map(up, args), **options)
with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
    if True:
return out.to(x.dtype) if x.dtype in half and out.is_floating_point() else out
    return out
return out.to(x.dtype) if x.dtype in half and out.is_floating_point() else out
    return out.to(x.dtype) if x.dtype in half else out
return out.to(x.dtype) if x.dtype in half and out.is_floating_point() else out
    return out.to(x.dtype) if out.is_floating_point() else out

attend_linearly | TestLinear or TestPerformer or TestFixation
def attend_linearly(q, k, v, eps=1e-6):
    def attend_linearly(q, k, v, eps=1e-5):
total = torch.einsum("...im,...m->...i", q, k.sum(dim=-2)) + eps
    total = torch.einsum("...im,...m->...i", q, k.mean(dim=-2)) + eps
if I * J * (M + e) < (I + J) * M * e:
    if I * J < (I + J) * e:
return q @ (k.transpose(-1, -2) @ v) / total[..., None]
    return (q @ k.transpose(-1, -2)) @ v / total[..., None]

relu_features | TestLinear
return F.relu(x) + x.shape[-1] ** -0.5
    return F.relu(x + x.shape[-1] ** -0.5)
return F.relu(x) + x.shape[-1] ** -0.5
    return F.elu(x) + 1

linear_attention | TestLinear or TestFixation
phi = feature_map or relu_features
    phi = relu_features
g_q, g_k = gates(q, k, v)
    g_k, g_q = gates(q, k, v)
q, k = g_q * q, g_k * k
    q, k = g_q * q, k
q, k = phi(q), phi(k)
    q, k = phi(q), F.softplus(k)

fixation_gate | TestFixation
return torch.sigmoid(layer(torch.cat(read, dim=-1)))
    return torch.sigmoid(layer(torch.cat(read[::-1], dim=-1)))
return torch.sigmoid(layer(torch.cat(read, dim=-1)))
    return torch.softmax(layer(torch.cat(read, dim=-1)), dim=-1)

shift_from_neighbours | TestNeighbourhood
diagonal = step.count(0) < 2
    diagonal = step.count(0) < 1
moved, inside = shift(moved, offset, axis), shift(inside, offset, axis)
    moved, inside = shift(moved, -offset, axis), shift(inside, -offset, axis)
own = clip[..., i * share : (i + 1) * share]
    own = clip[..., :share]
clip = rearrange(x, "B h (T H W) d -> B T H W (h d)", T=T, H=H, W=W)
    clip = rearrange(x, "B h (T H W) d -> B T H W (d h)", T=T, H=H, W=W)

LinearAttention | TestLinear or TestFixation or TestNeighbourhood or TestAdapters
self.skips_class_token = axis == "time"
    self.skips_class_token = False
return fixation_gate(self.gate_q, q), fixation_gate(layer_k, k)
    return fixation_gate(self.gate_q, q), fixation_gate(layer_k, q)
layer_k = self.gate_k or self.gate_q
    layer_k = self.gate_q
read = [q, k] if self.fixation == "qk" else [q, k, v]
    read = [q, k] if self.fixation == "qk" else [k, q, v]
return g_q, g_q if self.gate_k is None else fixation_gate(self.gate_k, *read)
    return g_q, g_q
return g_q, g_q if self.gate_k is None else fixation_gate(self.gate_k, *read)
    return g_q, fixation_gate(self.gate_k or self.gate_q, *read)
share = int(self.moved * x.shape[1] * x.shape[3] / len(steps) + 1e-6)
    share = int(0.5 * x.shape[1] * x.shape[3] / len(steps) + 1e-6)
k, v = self.neighbourhood(k, grid), self.neighbourhood(v, grid)
    k = self.neighbourhood(k, grid)
steps = EIGHT_AROUND if self.axis == "time" else NEXT_AND_PREVIOUS
    steps = NEXT_AND_PREVIOUS if self.axis == "time" else EIGHT_AROUND
attention = lambda q, k, v: linear_attention(q, k, v, None, gates, self.feature_map)
    attention = lambda q, k, v: linear_attention(q, k, v, None, gates)
along = time_attention if self.axis == "time" else space_attention
    along = space_attention if self.axis == "time" else time_attention
self.gate_q = nn.Linear(reads[fixation] * d, d) if fixation else None
    self.gate_q = nn.Linear(reads[fixation] * d, d, bias=False) if fixation else None

orthogonal_projection | TestPerformer
lengths = torch.randn(features, d).norm(dim=1, keepdim=True)
    lengths = torch.rand(features, d).norm(dim=1, keepdim=True)
blocks = [torch.linalg.qr(torch.randn(d, d))[0] for _ in range(math.ceil(features / d))]
    blocks = [torch.randn(d, d) / d**0.5 for _ in range(math.ceil(features / d))]

favor_features | TestPerformer
x = x * x.shape[-1] ** -0.25
    x = x * x.shape[-1] ** -0.5
return ((projected - (half_norm + largest)).exp() + eps) * len(projection) ** -0.5
    return (projected - (half_norm + largest)).exp() * len(projection) ** -0.5
return ((projected - (half_norm + largest)).exp() + eps) * len(projection) ** -0.5
    return ((projected - (half_norm + largest.detach())).exp() + eps) * len(projection) ** -0.5
half_norm = x.square().sum(dim=-1, keepdim=True) / 2
    half_norm = x.square().sum(dim=-1, keepdim=True)

performer_attention | TestPerformer
k = favor_features(k, projection, over=(-2, -1))
    k = favor_features(k, projection, over=(-1,))
out.append(attend_linearly(q, k, v, eps=0.0))
    out.append(attend_linearly(q, k, v, eps=1e-6))
return torch.cat(out, dim=1)
    return torch.cat(out[::-1], dim=1)

PerformerTrajectoryAttention | TestPerformer
k = favor_features(k, self.projection, over=(-2, -1))
    k = favor_features(k, self.projection, over=(-1,))
k, v = (rearrange(x, "B h (T S) m -> T B h S m", T=T) for x in (k, v))
    k, v = (rearrange(x, "B h (S T) m -> T B h S m", T=T) for x in (k, v))

PerformerAttention | TestPerformer
projection = orthogonal_projection(whole(features, "features"), dim // self.heads)
    projection = orthogonal_projection(256, dim // self.heads)

ATTENTION | TestRegistry or TestFactorised or TestShiftedWindows
"divided": [partial(TimeAttention, zero_init="extra"), SpaceAttention],
    "divided": [TimeAttention, SpaceAttention],
"divided": [partial(TimeAttention, zero_init="extra"), SpaceAttention],
    "divided": [SpaceAttention, partial(TimeAttention, zero_init="extra")],
"local_global": [partial(LocalAttention, zero_init="extra"), GlobalAttention],
    "local_global": [GlobalAttention, partial(LocalAttention, zero_init="extra")],
"factorised": [SpaceAttention, partial(TimeAttention, zero_init="proj")],
    "factorised": [SpaceAttention, partial(TimeAttention, zero_init="extra")],
"shifted_windows": [ShiftedWindowAttention, partial(ShiftedWindowAttention, displaced=True)],
    "shifted_windows": [ShiftedWindowAttention, ShiftedWindowAttention],
"mixing_summary": [partial(MixingAttention, summary=True)],
    "mixing_summary": [MixingAttention],
"linear_fixation": [partial(LinearAttention, fixation="qkv")],
    "linear_fixation": [LinearAttention],
"lvt": [partial(LinearAttention, axis="time", fixation="qkv", neighbours=True),
    "lvt": [partial(LinearAttention, axis="space", fixation="qkv", neighbours=True),

CLASS_TOKEN | TestRegistry
CLASS_TOKEN = dict.fromkeys(["space", "window", "mixing", "summary", "mixing_summary"], "frame")
    CLASS_TOKEN = dict.fromkeys(["space", "mixing", "summary", "mixing_summary"], "frame")
CLASS_TOKEN |= dict.fromkeys(["factorised", "factorised_heads", "shifted_windows", "lvt"], "none")
    CLASS_TOKEN |= dict.fromkeys(["factorised", "factorised_heads", "lvt"], "none")

PatchEmbedding | TestTokens or TestOptions
expects = property(lambda self: {"channels": self.proj.in_channels})
    expects = {"channels": 3}
padding = [n // 2 for n in self.patch_size] if self.overlap else 0
    padding = [(n - 1) // 2 for n in self.patch_size] if self.overlap else 0
self.norm = nn.LayerNorm(dim) if self.overlap else nn.Identity()
    self.norm = nn.Identity()
return self.norm(rearrange(self.proj(video), "B D T H W -> B (T H W) D")), grid
    return self.norm(rearrange(self.proj(video), "B D T H W -> B (H W T) D")), grid
fits = all(n >= p and n % p == 0 for n, p in zip(sizes, patch)) or self.overlap
    fits = all(n >= p for n, p in zip(sizes, patch)) or self.overlap
fits = all(n >= p and n % p == 0 for n, p in zip(sizes, patch)) or self.overlap
    fits = all(n >= p and n % p == 0 for n, p in zip(sizes, patch))
fits = fits and all(n <= p for n, p in zip(stride, patch))
    fits = fits
return tuple((n + 2 * padding - p) // stride + 1 for n, p, stride, padding in axes)
    return tuple((n + padding - p) // stride + 1 for n, p, stride, padding in axes)

as_sizes | TestTokens
size = [1, *size] if len(size) == 2 else size
    size = [*size, 1] if len(size) == 2 else size

resize_positions | TestTokens
mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[len(new)]
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(new)]
mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[len(new)]
    mode = {1: "nearest", 2: "bicubic", 3: "trilinear"}[len(new)]
if tuple(old) == tuple(new):
    if math.prod(old) == math.prod(new):

PositionEmbedding | TestTokens
class_token = class_token + self.for_class
    class_token = class_token
patches = patches + resize_positions(self.space, self.grid[1:], (H, W)).repeat(1, T, 1)
    patches = patches + resize_positions(self.space, self.grid[1:], (H, W)).repeat_interleave(T, 1)
time = resize_positions(self.time, self.grid[:1], (T,))
    time = self.time[:, torch.arange(T) % self.time.shape[1]]
patches = patches + time.repeat_interleave(H * W, dim=1)
    patches = patches + time.repeat(1, H * W, 1)
class_token = class_token + time if self.per_frame else class_token
    class_token = class_token + time[:, : class_token.shape[1]]
class_token = class_token + time if self.per_frame else class_token
    class_token = class_token
in_space = kind in ("space", "separate", "joint")
    in_space = kind in ("space", "separate")

StochasticDepth | TestInitialisation or TestBlock
keep = x.new_ones(x.shape[:1] + (1,) * (x.ndim - 1))
    keep = x.new_ones(x.shape)
return x * super().forward(keep) if self.training and self.p > 0 else x
    return x * super().forward(keep).sign() if self.training and self.p > 0 else x

MLP | TestBlock or TestHeads
self.depthwise = nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden) if depthwise else None
    self.depthwise = nn.Conv2d(hidden, hidden, 3, 1, 1) if depthwise else None
self.gelu = nn.GELU(approximate=gelu)
    self.gelu = nn.GELU()
return self.dropout(self.fc2(self.dropout(self.gelu(x))))
    return self.fc2(self.dropout(self.gelu(x)))
x = rearrange(x, "B (T H W) hidden -> (B T) hidden H W", T=T, H=H, W=W)
    x = rearrange(x, "B (T W H) hidden -> (B T) hidden H W", T=T, H=H, W=W)

Block | TestBlock or TestContract
self.expects = {"D": dim}
    self.expects = {}
self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=eps) for step in self.steps)
    self.norms = nn.ModuleList(nn.LayerNorm(dim) for step in self.steps)
x = x + self.drop_path(step(norm(x), grid))
    x = x + step(norm(x), grid)
x = x + self.drop_path(step(norm(x), grid))
    x = norm(x + self.drop_path(step(x, grid)))
return x + self.drop_path(self.mlp(self.mlp_norm(x), grid))
    return x + self.drop_path(self.mlp(x, grid))

TemporalAttentionHead | TestHeads or TestBlock or TestInitialisation
step = JointAttention(dim, heads, qkv_bias=False)
    step = JointAttention(dim, heads)
self.blocks.append(Block(dim, [step], MLP(dim, 4 * dim), eps=1e-5))
    self.blocks.append(Block(dim, [step], MLP(dim, 4 * dim)))
return x[:, 0]
    return x.mean(dim=1)

Head | TestHeads
x = x[:, :C].mean(dim=1)
    x = x[:, 0]
x = x[:, C:].mean(dim=1)
    x = x.mean(dim=1)
patches = reduce(x[:, C:], "B (T S) D -> B T D", "mean", T=grid[0])
    patches = reduce(x[:, C:], "B (S T) D -> B T D", "mean", T=grid[0])
x = self.temporal(x[:, :C] if self.per_frame else patches)
    x = self.temporal(x[:, :C] if C == grid[0] else patches)
return self.classify(self.norm(x))
    return self.classify(x)
"tanh": [nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, num_classes)],
    "tanh": [nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)],
hidden = hidden or dim
    hidden = dim
"gelu": [nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(),
    "gelu": [nn.Identity(), nn.Linear(dim, hidden), nn.GELU(),

VideoTransformer | TestInitialisation or TestBlock or TestHeads or TestTraining or TestOptions or TestBlocksThatDiffer
self.blocks.append(Block(dim, steps, mlp, drop_path * i / max(depth - 1, 1)))
    self.blocks.append(Block(dim, steps, mlp, drop_path))
steps = [step(dim, heads, **(dict(dropout=dropout) | step.keywords))
    steps = [step(dim, heads)
mlp = MLP(dim, whole(round(dim * mlp_ratio), "dim*mlp_ratio"), dropout, depthwise, gelu)
    mlp = MLP(dim, whole(round(dim * mlp_ratio), "dim*mlp_ratio"), dropout, depthwise)
mlp = MLP(dim, whole(round(dim * mlp_ratio), "dim*mlp_ratio"), dropout, depthwise, gelu)
    mlp = MLP(dim, round(dim * mlp_ratio), dropout, depthwise, gelu)
self.norm, self.head.norm = self.head.norm, self.norm
    self.head.norm = self.norm
self.norm = nn.LayerNorm(dim, eps=1e-6)
    self.norm = nn.LayerNorm(dim)
nn.init.trunc_normal_(module.weight, std=0.02)
    nn.init.normal_(module.weight, std=0.2)
nn.init.zeros_(module.bias)
    nn.init.ones_(module.bias)
module.start_at_zero()
    module
C = grid[0] if self.position.per_frame else 1
    C = 1
x = self.dropout(self.position(x, grid))
    x = self.position(x, grid)
x = self.dropout(self.position(x, grid))
    x = self.dropout(x)
again = self.checkpoint and self.training
    again = self.checkpoint
again = self.checkpoint and self.training
    again = False

completed | TestConfig or TestBlocksThatDiffer or TestOptions or TestHeads
schemes = [attention(i) for i in range(depth)]
    schemes = [attention(0)] * depth
require(len(schemes) == depth, "{} schemes for depth={}", len(schemes), depth)
    require(True, "{} schemes for depth={}", len(schemes), depth)
class_token = config["class_token"] or (kinds.pop() if len(kinds) == 1 else "clip")
    class_token = config["class_token"] or kinds.pop()
head = config["head"] or ("mean" if class_token == "none" else "class")
    head = config["head"] or "mean"
fits = fits and (class_token == "none" or not (near or config["depthwise"]))
    fits = fits and (class_token == "none" or not near)
fits = fits and (class_token == "none" or not (near or config["depthwise"]))
    fits = fits and (class_token == "none" or not config["depthwise"])
fits = fits and config["gelu"] in ("none", "tanh") and as_sizes(config["image_size"])[0] == 1
    fits = fits and config["gelu"] in ("none", "tanh")
fits = fits and config["gelu"] in ("none", "tanh") and as_sizes(config["image_size"])[0] == 1
    fits = fits and as_sizes(config["image_size"])[0] == 1
words = lambda steps: [dict(step=step.func.__name__, **step.keywords) for step in steps]
    words = lambda steps: [dict(step=step.func.__name__) for step in steps]
return config | dict(attention=schemes, class_token=class_token, head=head)
    return config

steps_of | TestConfig or TestBlocksThatDiffer
step = partial(Attention.known[options.pop("step")], **options)
    step = partial(Attention.known[options["step"]])
fits = isinstance(step, partial) and step.func in Attention.known.values() and not step.args
    fits = isinstance(step, partial) and not step.args
fits = isinstance(step, partial) and step.func in Attention.known.values() and not step.args
    fits = isinstance(step, partial) and step.func in Attention.known.values()
"""


def mutations():
    """(definition, tests, line, mistake) of every mutation."""
    found = []
    for group in MUTATIONS.strip().split("\n\n"):
        head, *lines = group.splitlines()
        definition, tests = head.split(" | ")
        pairs = zip(lines[::2], lines[1::2], strict=True)
        found += [(definition, tests, old, new.strip()) for old, new in pairs]
    return found


@functools.cache
def lines_of(source):
    """{name: (first, last)} lines of every definition and constant at the top of a file."""
    spans = {}
    for node in ast.parse(source).body:
        decorators = [one.lineno for one in getattr(node, "decorator_list", [])]
        names = [node.name] if hasattr(node, "name") else []
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        for name in names:
            first = spans.get(name, (min([node.lineno, *decorators]),))[0]
            spans[name] = first, node.end_lineno
    return spans


def mutated(source, definition, old, new):
    """The text with one line of a definition replaced; ValueError unless it has one such line."""
    lines = source.splitlines()
    first, last = lines_of(source).get(definition, (1, 0))
    bare = [re.sub(r"  # .*$", "", line).strip() for line in lines]
    places = [n for n in range(first - 1, last) if bare[n] == old]
    if len(places) != 1:
        raise ValueError(f"{definition} has {len(places)} lines like: {old}")
    indent = re.match(" *", lines[places[0]]).group()
    return "\n".join([*lines[: places[0]], indent + new, *lines[places[0] + 1 :]]) + "\n"


class FirstRed:
    """What pytest calls for every test: keeps the first that failed."""

    name, passed = None, 0

    def pytest_runtest_logreport(self, report):
        self.passed += report.passed and report.when == "call"
        if report.failed and self.name is None:
            self.name = report.nodeid.partition("::")[2]

    def pytest_collectreport(self, report):
        if report.failed:
            self.name = "collection"


def survives(job):
    """Run the tests on one mutation, silently: a text to print, and whether all have passed."""
    import pytest

    (definition, tests, old, new), folder, number = job
    path = Path(folder) / f"mutant{number}.py"
    try:
        path.write_text(mutated(SUBJECT.read_text(), definition, old, new))
    except ValueError as error:
        return f"NOT THERE: {error}", True
    os.environ["VIDEO_ATTENTION"] = str(path)
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    red, options = FirstRed(), ["-xq", "-p", "no:cacheprovider", "-W", "ignore"]
    quick = ["-k", "not overfits and not two_processes"]
    asked = [f"{TESTS}::{name}" for name in tests.split(" or ")]
    code = pytest.main([*options, *quick, *asked], plugins=[red])
    verdict = red.name or (f"exit status {int(code)}" if code else f"SURVIVED {red.passed} tests")
    return f"{definition}: {new}\n{'':10} {verdict}", not code


def main(words):
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    chosen = mutations()
    for word in words:
        every = word.isdecimal() and int(word)
        chosen = chosen[::every] if every else [one for one in chosen if one[0] == word]
    if not chosen:
        given = " ".join(words)[:100]
        sys.exit(f"no mutation for {given}: give N for every Nth, or a definition's name")
    survivors, count = 0, 0
    how = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context(how).Pool(
        os.cpu_count(), maxtasksperchild=1
    ) as pool:
        jobs = [(one, folder, number) for number, one in enumerate(chosen)]
        for text, alive in pool.imap(survives, jobs, chunksize=1):
            count, survivors = count + 1, survivors + alive
            print(f"{count:3} of {len(chosen)}  {text}", flush=True)
    print(f"{len(chosen) - survivors} turned a test red, {survivors} survived")
    return survivors


if __name__ == "__main__":
    import torch  # noqa: F401  before the pool forks, so that no mutation imports it again

    sys.exit(main(sys.argv[1:]))
