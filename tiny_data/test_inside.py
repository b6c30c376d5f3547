"""Looking inside (tiny_data/inside.py), the benchmark, and forms that must agree."""

import importlib
import json
import math
import os
import sys
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn as nn

import video_attention as va

torch.set_num_threads(1)

from tiny_data import inside
from tiny_data.testing import same

# ==== WEIGHTS FROM THE DEFINITIONS, matrices (B, h, N, N) written without the file ================

DEFAULTS = dict(
    window=1,
    moved=0.5,
    summary=False,
    size=(8, 7, 7),
    displaced=False,
    stride=(1, 2, 2),
    pool_queries=False,
    iterations=6)

class Paid:
    """What every token pays to every other in one attention step, from q, k, v (B, h, N, d).

    `keys` are rows of numbers over the tokens, (J, N), or (d, J, N) where channels differ: row j
    says how key j, and value j, is put together from the tokens.
    """

    def __init__(self, module, q, k, v, grid):
        self.module, self.q, self.k, self.v, self.grid = module, q, k, v, grid
        self.B, self.h, self.N, self.d = q.shape
        kept = {name: vars(module)[name] for name in DEFAULTS if name in vars(module)}
        self.options = DEFAULTS | module.options | kept
        self.T, self.H, self.W = grid
        self.C = self.N - math.prod(grid)
        self.eye = torch.eye(self.N, dtype=q.dtype)
        self.frames = [
            range(self.C + t * self.H * self.W, self.C + (t + 1) * self.H * self.W)
            for t in range(self.T)]
        self.tokens = [[token for token in frame] for frame in self.frames]

    def token(self, t, y, x):
        return self.C + (t * self.H + y) * self.W + x

    def class_of(self, t):
        """The class tokens that a frame sees: its own, or the clip's."""
        return [t] if self.C == self.T else list(range(self.C))

    def softmax(self, q, k):
        return (q @ k.transpose(-1, -2) / math.sqrt(self.d)).softmax(dim=-1)

    def together(self, groups, heads=slice(None)):
        """Groups of (queries, keys) -> (B, h, N, N). A query in several groups gets the mean of
        them."""
        q, k = self.q[:, heads], self.k[:, heads]
        out = q.new_zeros(*q.shape[:3], self.N)
        times = q.new_zeros(self.N)
        for queries, keys in groups:
            keys = self.eye[keys] if isinstance(keys, list) else keys
            keys = keys.expand(self.d, *keys.shape[-2:])  # (d, J, N)
            weights = self.softmax(q[:, :, queries], torch.einsum("djn,bhnd->bhjd", keys, k))
            out[:, :, queries] += weights @ keys.mean(dim=0)
            times[queries] += 1
        return out / times.clamp(min=1)[:, None]

    def own_groups(self, groups):
        """Groups of (frame, patches) that attend to themselves, each with the class token of its
        frame."""
        members = [self.class_of(t) + patches for t, patches in groups]
        return [(tokens, tokens) for tokens in members]

    def boxes(self, box_of):
        """box_of(t, y, x) names the box of a patch; all class tokens join every box."""
        boxes = {}
        for where in product(*map(range, self.grid)):
            boxes.setdefault(box_of(*where), list(range(self.C))).append(self.token(*where))
        return self.together([(tokens, tokens) for tokens in boxes.values()])

    # One method for every class of attention.

    def SpaceAttention(self, heads=slice(None)):
        return self.together(self.own_groups(enumerate(self.tokens)), heads)

    def JointAttention(self):
        return self.together([(list(range(self.N)), list(range(self.N)))])

    def TimeAttention(self, heads=slice(None)):
        places = [[frame[i] for frame in self.frames] for i in range(self.H * self.W)]
        return self.together([(place, place) for place in places], heads)

    def FactorisedHeadsAttention(self):
        half = self.h // 2
        return torch.cat(
            [self.SpaceAttention(slice(0, half)), self.TimeAttention(slice(half, None))], dim=1)

    def LocalAttention(self):
        return self.boxes(lambda t, y, x: (2 * y >= self.H, 2 * x >= self.W))

    def GlobalAttention(self):
        return self.boxes(lambda t, y, x: (t % 2, y % 2, x % 2))

    def WidthAttention(self):
        rows = [
            (t, [self.token(t, y, x) for x in range(self.W)])
            for t, y in product(range(self.T), range(self.H))]
        return self.together(self.own_groups(rows))

    def HeightAttention(self):
        columns = [
            (t, [self.token(t, y, x) for y in range(self.H)])
            for t, x in product(range(self.T), range(self.W))]
        return self.together(self.own_groups(columns))

    def WindowAttention(self):
        w, groups = self.options["window"], []
        for t in range(self.T):
            near = [i for i in range(self.T) if abs(i - t) <= w]
            keys = [token for i in near for token in self.class_of(i) + self.tokens[i]]
            groups.append((self.class_of(t) + self.tokens[t], keys))
        return self.together(groups)

    def ShiftedWindowAttention(self):
        def box_of(*where):  # cut at by, by + size, by + 2*size and so on
            size, half = self.options["size"], self.options["displaced"]
            half = any(half) if isinstance(half, list) else half
            cuts = zip(where, self.grid, size, [n // 2 if half else 0 for n in size])
            return tuple((i - by) // size if n > size else 0 for i, n, size, by in cuts)

        return self.boxes(box_of)

    def PooledAttention(self):
        blocks = {(i,): [i] for i in range(self.C)}
        for where in product(*map(range, self.grid)):
            block = tuple(i // step for i, step in zip(where, self.options["stride"]))
            blocks.setdefault(block, []).append(self.token(*where))
        keys = torch.stack([self.eye[block].mean(dim=0) for block in blocks.values()])  # (J, N)
        if not self.options["pool_queries"]:
            return self.together([(list(range(self.N)), keys)])
        weights = self.softmax(keys @ self.q, keys @ self.k) @ keys  # (B, h, J, N)
        return (keys > 0).to(keys).T @ weights

    def summaries(self):
        return torch.stack([self.eye[frame].mean(dim=0) for frame in self.tokens])  # (T, N)

    def SummaryAttention(self):
        return self.together(
            [
                (
                    self.class_of(t) + frame,
                    torch.cat([self.eye[self.class_of(t) + frame], self.summaries()]))
                for t, frame in enumerate(self.tokens)])

    def MixingAttention(self):
        window, moved, groups = self.options["window"], self.options["moved"], []
        offsets = [sign * i for i in range(1, window + 1) for sign in (1, -1)]
        share = int(moved * self.d / max(1, len(offsets)))
        channels = [offset for offset in offsets for _ in range(share)]
        channels += [0] * (self.d - len(channels))  # which frame each channel comes from
        for t, frame in enumerate(self.tokens):
            queries, keys = self.class_of(t) + frame, []
            for offset in channels:
                inside = 0 <= t + offset < self.T
                taken = self.class_of(t + offset) + self.tokens[t + offset] if inside else None
                keys.append(self.eye[taken] if inside else torch.zeros_like(self.eye[queries]))
            keys = torch.stack(keys)
            if self.options["summary"]:
                summaries = self.summaries().expand(self.d, -1, -1)
                keys = torch.cat([keys, summaries], dim=1)
            groups.append((queries, keys))
        return self.together(groups)

    def OrthoformerAttention(self):
        P = self.module.prototypes(self.q, self.k)
        return self.softmax(self.q, P) @ self.softmax(P, self.k)

    def inverse(self, A):
        Z = A.transpose(-1, -2) / A.sum(dim=-2, keepdim=True).amax(dim=-1, keepdim=True)
        eye = torch.eye(A.shape[-1], dtype=A.dtype)
        for _ in range(self.options["iterations"]):
            Z = Z @ (13 * eye - A @ Z @ (15 * eye - A @ Z @ (7 * eye - A @ Z))) / 4
        return Z

    def NystromAttention(self):  # with every token a landmark
        A = self.softmax(self.q, self.k)
        return A @ self.inverse(A) @ A

    def features(self, x, over):
        x = x / self.d**0.25
        scores = x @ self.module.projection.T
        largest = scores.amax(dim=over, keepdim=True)
        return (scores - x.square().sum(dim=-1, keepdim=True) / 2 - largest).exp() + 1e-6

    def PerformerAttention(self):
        A = self.features(self.q, -1) @ self.features(self.k, (-2, -1)).transpose(-1, -2)
        return A / A.sum(dim=-1, keepdim=True)

    # Trajectory attention: a map in each frame from `first`, and weights along the path.

    def along_paths(self, first):
        """first (B, h, T*S, T*S) holds a map in each frame; times the weights along the path."""
        C, S = self.C, self.H * self.W
        values = self.v[:, :, C:]
        y = torch.stack(
            [
                first[..., t * S : (t + 1) * S] @ values[:, :, t * S : (t + 1) * S]
                for t in range(self.T)],
            dim=3)  # (B, h, T*S, T, d)
        joined = y.permute(0, 2, 3, 1, 4).flatten(3)  # (B, T*S, T, D)
        keys = self.module.proj_kv(joined)[..., : self.h * self.d].unflatten(-1, (self.h, self.d))
        out = torch.zeros(self.B, self.h, self.N, self.N, dtype=first.dtype)
        for i in range(self.N - C):
            q = self.module.proj_q(joined[:, i, i // S]).unflatten(-1, (self.h, self.d))
            scores = torch.einsum("bhd,bthd->bht", q, keys[:, i]) / math.sqrt(self.d)
            along = scores.softmax(dim=-1).repeat_interleave(S, dim=-1)
            out[:, :, C + i, C:] = along * first[:, :, i]
        out[:, :, :C] = self.softmax(self.q[:, :, :C], self.k)
        return out

    def in_frames(self, weights):
        """softmax over all patches -> softmax over each frame's, from weights that are not yet
        divided."""
        frames = weights.unflatten(-1, (self.T, -1))
        return (frames / frames.sum(dim=-1, keepdim=True)).flatten(-2)

    def patches(self):
        return self.q[:, :, self.C :], self.k[:, :, self.C :]

    def TrajectoryAttention(self):
        q, k = self.patches()
        return self.along_paths(self.in_frames((q @ k.transpose(-1, -2) / math.sqrt(self.d)).exp()))

    def OrthoformerTrajectoryAttention(self):
        q, k = self.patches()
        P = self.module.prototypes(q, k)
        return self.along_paths(self.softmax(q, P) @ self.in_frames(self.softmax(P, k)))

    def NystromTrajectoryAttention(self):
        q, k = self.patches()
        A = self.softmax(q, k)
        return self.along_paths(A @ self.inverse(A) @ self.in_frames(A))

    def PerformerTrajectoryAttention(self):
        q, k = self.patches()
        A = self.features(q, -1) @ self.features(k, (-2, -1)).transpose(-1, -2)
        return self.along_paths(self.in_frames(A))

    # Linear attention: features, gates, neighbours.

    def neighbours(self):
        """(h, d, N, N): from which patch each channel of each patch comes."""
        if self.module.axis == "time":
            steps = [
                (0, *s)
                for s in ((1, 0), (-1, 0), (0, 1), (0, -1), (-1, -1), (1, 1), (-1, 1), (1, -1))]
        else:
            steps = [(1, 0, 0), (-1, 0, 0)]
        share = int(self.module.moved * self.h * self.d / len(steps))
        out = self.eye.repeat(self.h * self.d, 1, 1)
        for channel in range(share * len(steps)):
            step = steps[channel // share]
            for where in product(*map(range, self.grid)):
                there = tuple(i + by for i, by in zip(where, step))
                inside = all(0 <= i < n for i, n in zip(there, self.grid))
                if not inside and 0 not in step[1:]:
                    continue  # a diagonal neighbour outside: the patch keeps its own
                row = out[channel, self.token(*where)]
                row.zero_()
                if inside:
                    row[self.token(*there)] = 1
        return out.unflatten(0, (self.h, self.d))

    def LinearAttention(self):
        q, k, v, sources = self.q, self.k, self.v, None
        if self.module.neighbours:
            sources = self.neighbours()
            k, v = (torch.einsum("hdjn,bhnd->bhjd", sources, x) for x in (k, v))
        q, k = (x.clamp(min=0) + self.d**-0.5 for x in (q, k))
        if self.module.fixation is not None:
            gate = torch.sigmoid(self.module.gate_q(torch.cat([q, k, v], dim=-1)))
            q, k = gate * q, gate * k
        A = q @ k.transpose(-1, -2)
        if self.module.axis != "joint":  # patches of the same frame, or of the same position
            n = torch.arange(self.N) - self.C
            S = self.H * self.W
            together = n // S if self.module.axis == "space" else n % S
            A = A * (together[:, None] == together)
            A[:, :, : self.C] = 0
            A[..., : self.C] = 0
        A = A / (A.sum(dim=-1, keepdim=True) + 1e-6)
        return A if sources is None else A @ sources.mean(dim=1)

def explicit(module, x, grid):
    """(B, h, N, N) of a module on tokens x, from the definition."""
    with torch.no_grad():
        q, k, v = module.qkv(x).unflatten(-1, (3, module.heads, -1)).permute(2, 0, 3, 1, 4)
        return getattr(Paid(module, q, k, v, grid), type(module).__name__)()

B, HEADS, D, GRID = 2, 4, 24, (3, 5, 7)  # d = 6
CLASS_TOKENS = {"none": 0, "clip": 1, "frame": GRID[0]}

def random_step(step, dim=D, heads=HEADS):
    """A step with random weights and biases in every layer."""
    module = va.steps_of([step])[0](dim, heads).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module

def all_steps():
    """Every step of every scheme, and options that differ from the defaults."""
    for name in va.ATTENTION:
        for i, step in enumerate(va.ATTENTION[name]):
            yield pytest.param(step, id=f"{name} {i}")
    others = [
        partial(va.ShiftedWindowAttention, size=(2, 3, 4)),
        partial(va.ShiftedWindowAttention, size=(2, 3, 4), displaced=True),
        partial(va.PooledAttention, stride=(2, 2, 3), pool_queries=True),
        partial(va.WindowAttention, window=0),
        partial(va.MixingAttention, window=2, moved=1.0),
        partial(va.OrthoformerAttention, prototypes=7),
        partial(va.OrthoformerTrajectoryAttention, prototypes=7)]
    for step in others:
        yield pytest.param(step, id=f"{step.func.__name__} {step.keywords}")

def class_tokens_of(step):
    """What a step can have: neighbours in space are those of patches alone."""
    options = va.steps_of([step])[0].keywords
    return {"none": 0} if options.get("neighbours") and options["axis"] == "space" else CLASS_TOKENS

class TestInside:
    """Looking inside by calling, never by patching: maps, trajectories, prototypes, keys, gates,
    rollout."""

    @pytest.mark.parametrize("step", list(all_steps()))
    def test_map_is_what_the_definition_pays(self, step):
        module = random_step(step)
        for C in class_tokens_of(step).values():
            x = torch.randn(B, C + math.prod(GRID), D, dtype=torch.double)
            weights = explicit(module, x, GRID)
            for t, y, p in ((0, 0, 0), (1, 2, 3), (2, 4, 6)):
                found = inside.attention_map(module, x, GRID, (t, y, p))
                same(found, weights[:, :, C + (t * GRID[1] + y) * GRID[2] + p], 1e-10)
            for i in range(C):
                same(inside.attention_map(module, x, GRID, i), weights[:, :, i], 1e-10)

    @pytest.mark.parametrize("name", va.ATTENTION)
    def test_what_maps_sum_to(self, name):
        exact = not any(word in name for word in ("mixing", "linear", "lvt", "nystrom"))
        for step in va.ATTENTION[name]:
            x = torch.randn(1, math.prod(GRID), D, dtype=torch.double)
            total = inside.attention_map(random_step(step), x, GRID, (0, 2, 3)).sum(dim=-1)
            if exact:
                same(total, torch.ones_like(total), 1e-12)
            assert 0 <= total.min() and 0.5 < total.mean() and total.max() < 1.1

    def test_map_is_exact_for_any_values(self):
        """One call of the whole module, put together again from its maps."""
        module, C = random_step(va.SpaceAttention), 1
        x = torch.randn(B, C + math.prod(GRID), D, dtype=torch.double)
        v = module.project(x)[2]
        out = torch.einsum("bhn,bhnd->bhd", inside.attention_map(module, x, GRID, (1, 2, 3)), v)
        i = C + (1 * GRID[1] + 2) * GRID[2] + 3
        same(module.proj(out.flatten(1)), module(x, GRID)[:, i], 1e-10)

    def test_map_needs_no_gradients_and_leaves_none(self):
        module = random_step(va.TrajectoryAttention).requires_grad_(False)
        x = torch.randn(B, 1 + math.prod(GRID), D, dtype=torch.double, requires_grad=True)
        expected = inside.attention_map(module, x, GRID, (1, 2, 3))
        assert x.grad is None and not expected.requires_grad and torch.is_grad_enabled()
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                same(inside.attention_map(module, x * 1, GRID, (1, 2, 3)), expected, 0)

    def test_trajectory_maps_are_both_stages(self):
        for kind in (
            va.TrajectoryAttention,
            partial(va.OrthoformerTrajectoryAttention, prototypes=9)):
            module, C = random_step(kind), 1
            x = torch.randn(B, C + math.prod(GRID), D, dtype=torch.double)
            maps, along = inside.trajectory_maps(module, x, GRID, (1, 2, 3))
            assert maps.shape == (B, HEADS, *GRID) and along.shape == (B, HEADS, GRID[0])
            same(maps.sum(dim=(3, 4)), torch.ones_like(along), 1e-12)
            same(along.sum(dim=2), torch.ones_like(along[..., 0]), 1e-12)
            whole = inside.attention_map(module, x, GRID, (1, 2, 3))[..., C:].unflatten(-1, GRID)
            same(maps * along[..., None, None], whole, 1e-12)

    def test_prototypes_are_tokens(self):
        for kind, first in ((va.OrthoformerAttention, 0), (va.OrthoformerTrajectoryAttention, 1)):
            module = random_step(partial(kind, prototypes=9))
            x = torch.randn(B, 1 + math.prod(GRID), D, dtype=torch.double)
            prototypes, tokens, is_key = inside.prototypes_of(module, x, GRID)
            assert prototypes.shape == (B, HEADS, 9, D // HEADS)
            assert tokens.min() >= first and is_key.any() and not is_key.all()
            q, k, v = module.project(x)
            for b, head, p in product(range(B), range(HEADS), range(9)):
                source = k if is_key[b, head, p] else q
                same(prototypes[b, head, p], source[b, head, tokens[b, head, p]], 0)
                chosen = {
                    (i.item(), key.item()) for i, key in zip(tokens[b, head], is_key[b, head])}
                assert len(chosen) == 9, "a token twice"
            if kind is va.OrthoformerAttention:
                same(
                    va.orthoformer_attention(q, k, v, GRID, prototypes),
                    module.mechanism(q, k, v, GRID),
                    0)

    def test_means_are_no_tokens(self):
        module = random_step(
            partial(va.OrthoformerAttention, prototypes=9, choose=va.segment_prototypes))
        x = torch.randn(B, math.prod(GRID), D, dtype=torch.double)
        prototypes, tokens, is_key = inside.prototypes_of(module, x, GRID)
        assert (tokens == -1).all() and not is_key.any() and prototypes.shape[2] == 9

    @pytest.mark.parametrize("summary", (False, True))
    def test_mixed_keys(self, summary):
        T, S = GRID[0], math.prod(GRID[1:])
        module = random_step(partial(va.MixingAttention, summary=summary))
        x = torch.randn(B, T + T * S, D, dtype=torch.double)
        keys = inside.mixed_keys(module, x, GRID)
        k = module.project(x)[1]
        k = torch.cat(
            [k[:, :, :T, None], k[:, :, T:].unflatten(2, (T, S))], dim=3)  # (B, h, T, 1 + S, d)
        zeros = torch.zeros_like(k[:, :, 0, :, 0])
        for t in range(T):  # d = 6: a channel from the next frame, one from the frame before
            same(keys[:, :, t, : 1 + S, 0], k[:, :, t + 1, :, 0] if t + 1 < T else zeros, 0)
            same(keys[:, :, t, : 1 + S, 1], k[:, :, t - 1, :, 1] if t > 0 else zeros, 0)
            same(keys[:, :, t, : 1 + S, 2:], k[:, :, t, :, 2:], 0)
            if summary:
                same(keys[:, :, t, 1 + S :], k[:, :, :, 1:].mean(dim=3), 1e-12)
        assert keys.shape[3] == 1 + S + T * summary

    def test_neighbours_keys(self):
        module = random_step(partial(va.LinearAttention, axis="space", neighbours=True))
        x = torch.randn(B, math.prod(GRID), D, dtype=torch.double)
        keys = inside.mixed_keys(module, x, GRID)
        k = module.project(x)[1].unflatten(2, (GRID[0], -1))
        same(
            keys[:, 0, :-1], k[:, 0, 1:], 0
        )  # 6 of 24 channels are the first head's, from the next frame
        same(keys[:, 3], k[:, 3], 0)

    @pytest.mark.parametrize("axis", ("joint", "space", "time"))
    @pytest.mark.parametrize(
        "options", (dict(fixation="own"), dict(fixation="qkv", shared_gate=False)))
    def test_gates(self, axis, options):
        module = random_step(partial(va.LinearAttention, axis=axis, **options))
        x = torch.randn(B, 1 + math.prod(GRID), D, dtype=torch.double)
        g_q, g_k = inside.gates_of(module, x, GRID)
        assert 0 < g_q.min() and g_q.max() < 1
        q, k, v = module.project(x[:, 1:] if axis == "time" else x)
        read = [va.relu_features(q), va.relu_features(k), v]
        same(
            g_q,
            torch.sigmoid(
                module.gate_q(read[0] if "own" in options.values() else torch.cat(read, -1))))
        if axis == "joint":
            out = va.linear_attention(q, k, v, GRID, gates=lambda *features: (g_q, g_k))
            same(out, module.mechanism(q, k, v, GRID), 1e-12)

    @pytest.mark.parametrize("axis", ("space", "time"))
    def test_gates_of_neighbours(self, axis):
        """Gates see the keys that neighbours have changed; they are put back from groups to tokens.
        """
        module = random_step(
            partial(va.LinearAttention, axis=axis, fixation="qkv", neighbours=True))
        x = torch.randn(B, math.prod(GRID), D, dtype=torch.double)
        q, k, v = module.project(x)
        k, v = module.neighbourhood(k, GRID), module.neighbourhood(v, GRID)
        read = torch.cat([va.relu_features(q), va.relu_features(k), v], dim=-1)
        for gate in inside.gates_of(module, x, GRID):
            same(gate, torch.sigmoid(module.gate_q(read)))

    def test_refusals(self):
        x = torch.randn(B, 1 + math.prod(GRID), D, dtype=torch.double)
        joint, trajectory = random_step(va.JointAttention), random_step(va.TrajectoryAttention)
        for query in ((3, 0, 0), (0, -1, 0), (0, 0), 1, -1, "middle", None):
            with pytest.raises(ValueError, match="query="):
                inside.attention_map(joint, x, GRID, query)
        with pytest.raises(ValueError, match="trajector"):
            inside.trajectory_maps(joint, x, GRID, (0, 0, 0))
        with pytest.raises(ValueError, match="class token has no trajectory"):
            inside.trajectory_maps(trajectory, x, GRID, 0)
        with pytest.raises(ValueError, match="prototypes"):
            inside.prototypes_of(joint, x, GRID)
        with pytest.raises(ValueError, match="mixed keys"):
            inside.mixed_keys(joint, x, GRID)
        with pytest.raises(ValueError, match="gates"):
            inside.gates_of(random_step(va.LinearAttention), x, GRID)

def small_model(name, class_token, **options):
    model = va.VideoTransformer(
        name,
        num_classes=3,
        num_frames=3,
        image_size=(4, 10),
        patch_size=2,
        dim=D,
        depth=2,
        heads=HEADS,
        class_token=class_token,
        **options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.double().eval()

def blocks_by_hand(model, video):
    """For every step of every block: the module and the tokens that enter it."""
    x, grid = model.patches(video)
    if model.class_token is not None:
        C = grid[0] if model.config["class_token"] == "frame" else 1
        x = torch.cat([model.class_token.expand(len(x), C, -1), x], dim=1)
    x, found = model.position(x, grid), []
    for block in model.blocks:
        for norm, step in zip(block.norms, block.steps):
            found.append((step, norm(x)))
            x = x + step(norm(x), grid)
        x = x + block.mlp(block.mlp_norm(x), grid)
    same(model.norm(x), model.forward_features(video), 1e-10)
    return found

class TestInsideModels:
    GRID, VIDEO = (3, 2, 5), (B, 3, 3, 4, 10)  # and its pixels

    @pytest.mark.parametrize("name", va.ATTENTION)
    def test_layers_and_rollout(self, name):
        kinds = ["none"] if name == "lvt" else CLASS_TOKENS
        for kind in kinds:
            model, video = small_model(name, kind), torch.randn(self.VIDEO, dtype=torch.double)
            steps = blocks_by_hand(model, video)
            weights = [explicit(step, x, self.GRID) for step, x in steps]
            n, C, i = len(steps) // 2, CLASS_TOKENS[kind], CLASS_TOKENS[kind] + (1 * 2 + 1) * 5 + 3
            maps = inside.layer_map(model, video, -1, (1, 1, 3))
            assert len(maps) == n
            for found, expected in zip(maps, weights[n:]):
                same(found, expected[:, :, i], 1e-9)
            for found, expected in zip(inside.layer_map(model, video, 0, (1, 1, 3)), weights):
                same(found, expected[:, :, i], 1e-9)
            rolled = torch.eye(C + math.prod(self.GRID), dtype=torch.double)
            for paid in weights:
                A = paid.mean(dim=1) + torch.eye(C + math.prod(self.GRID), dtype=torch.double)
                rolled = A / A.sum(dim=-1, keepdim=True) @ rolled
            same(inside.rollout(model, video, (1, 1, 3)), rolled[:, i], 1e-9)
            pooled = slice(0, C) if C > 0 else slice(0, None)
            whole = inside.rollout(model, video)
            same(whole, rolled[:, pooled].mean(dim=1), 1e-9)
            same(whole.sum(dim=1), torch.ones(B, dtype=torch.double), 1e-9)

    def test_rollout_starts_where_the_head_pools(self):
        video = torch.randn(self.VIDEO, dtype=torch.double)
        S = math.prod(self.GRID[1:])
        for head, kind, first, last in (
            ("mean", "clip", 1, 1 + 3 * S),
            ("temporal", "clip", 1, 1 + 3 * S),
            ("temporal", "frame", 0, 3),
            ("class", "frame", 0, 3)):
            model = small_model("joint", kind, head=head)
            rows = [inside.rollout(model, video, i) for i in range(CLASS_TOKENS[kind])]
            rows += [
                inside.rollout(model, video, where) for where in product(*map(range, self.GRID))]
            same(inside.rollout(model, video), torch.stack(rows[first:last]).mean(dim=0), 1e-10)

    def test_model_must_be_in_eval(self):
        model = small_model("joint", "clip").train()
        for call in (partial(inside.layer_map, layer=0, query=0), inside.rollout):
            with pytest.raises(ValueError, match="eval"):
                call(model, torch.randn(self.VIDEO, dtype=torch.double))
        assert torch.is_grad_enabled()

    def test_gradients_are_as_before(self):
        model = small_model("joint", "clip")
        inside.layer_map(model, torch.randn(self.VIDEO, dtype=torch.double), 0, 0)
        assert torch.is_grad_enabled() and all(p.grad is None for p in model.parameters())

# ==== THE BENCHMARK ===============================================================================

class TestBenchmark:
    """What python -m tiny_data.benchmark prints; how fast it is, only the machine can tell."""

    SIZE = "--grid 2 3 4 --dim 24 --heads 2 --repeats 1".split()

    @pytest.fixture(autouse=True)
    def module(self, seeded):
        self.benchmark = importlib.import_module("tiny_data.benchmark")

    def test_the_plain_trajectory_is_trajectory_attention(self):
        """What is timed against must compute the same, values and gradients."""
        plain = self.benchmark.PlainTrajectoryAttention(D, HEADS).double()
        folded = va.TrajectoryAttention(D, HEADS).double()
        plain.load_state_dict(folded.state_dict())
        x = torch.randn(B, math.prod(GRID), D, dtype=torch.double, requires_grad=True)
        outs = [module(x, GRID) for module in (plain, folded)]
        same(*outs)
        same(*(torch.autograd.grad(out.square().sum(), x)[0] for out in outs))

    def test_what_is_measured(self):
        row = self.benchmark.measure("joint", (2, 3, 4), dim=24, heads=2, repeats=1)
        assert row["parameters"] == 4 * 24 * 25 and row["macs"] == 4 * 24 * 24**2 + 2 * 24**2 * 24
        assert 0 < row["forward_ms"] and 0 < row["both_ms"] and 0 < row["peak_mb"] < 1

    def test_peak_is_what_is_held_at_once(self):
        def call():
            for _ in range(3):
                kept = torch.ones(500, 1000)  # 2 MB
                kept[:250] + torch.ones(250, 1000)  # two of 1 MB, soon freed

        assert self.benchmark.peak_megabytes(call) == 2 + 1 + 1
        assert self.benchmark.peak_megabytes(lambda: torch.ones(500, 1000)) == 2

    def test_the_fast_form_saves_memory(self):
        """The plain form keeps keys and values of all trajectories. Random features are longer than
        tokens; a copy of the queries' for every frame would take more than all of the plain form.
        """
        size = dict(grid=(8, 14, 14), dim=192, heads=3)
        plain, folded, performer = (
            self.benchmark.peak_megabytes(self.benchmark.passes(scheme, **size)[2])
            for scheme in (
                [self.benchmark.PlainTrajectoryAttention],
                "trajectory",
                "trajectory_performer"))
        assert folded < 0.5 * plain and performer < 0.8 * plain

    def test_exponent_is_the_slope_on_log_axes(self):
        assert self.benchmark.exponent([1, 2, 8], [3.0, 12.0, 192.0]) == pytest.approx(2)

    def test_tables(self, capsys):
        size = [*self.SIZE, *"--growth 1 2 --schemes space lvt space+joint".split()]
        self.benchmark.main(size)
        lines = capsys.readouterr().out.splitlines()
        for name in ("joint", "space", "lvt", "space+joint"):
            assert sum(line.split()[:1] == [name] for line in lines) == 2
        self.benchmark.main([*size, "--json"])
        found = json.loads(capsys.readouterr().out)
        assert found["results"].keys() == {"joint", "space", "lvt", "space+joint"}
        assert found["grids"] == [[2, 3, 4], [2, 6, 4]]
        macs = {name: rows[1]["macs"] for name, rows in found["results"].items()}
        assert macs["space"] == 4 * 48 * 24**2 + 2 * 2 * 24**2 * 24
        assert macs["space+joint"] == macs["space"] + macs["joint"]

    def test_json_of_all_schemes(self, capsys):
        """The default schemes too must end as JSON, after everything has been measured."""
        self.benchmark.main([*self.SIZE, "--growth", "1", "--json"])
        assert json.loads(capsys.readouterr().out)["results"].keys() == va.ATTENTION.keys()

    def test_one_size_has_no_exponent(self, capsys):
        self.benchmark.main([*self.SIZE, "--growth", "1", "--schemes", "space"])
        assert "N^" not in capsys.readouterr().out

    @pytest.mark.parametrize(
        "words, told",
        (
            ("--repeats 0", "1 or more"),
            ("--repeats 1.5", "whole number"),
            ("--dim 7", "dim=7"),
            ("--device tpu", "cpu or cuda"),
            ("--schemes devided", "devided"),
            ("--growth 0", "1 or more"),
            ("--grid 8 0 14", "1 or more"),
            ("--train 0", "1 or more"),
            ("--peak -3", "above 0"),
            ("--peak 3", "--peak is for --train"),
            ("--targets --train 2", "one at a time"),
            ("--targets --schemes joint", "leave out --schemes"),
            ("--targets --growth 2", "two sizes or more"),
            ("--growth 2 1 2", "--growth [2, 1, 2]: give each size once"),
            ("--dim 99999999999999999999", "at most 9 digits"),
            ("--dim 999999996 --grid 99999 99999 1 --schemes joint", "joint: "),
            ("--heads 3 --schemes factorised_heads", "halves"),
            ("--schemes space+", "unknown")))
    def test_options_are_checked_before_anything_is_measured(self, words, told, capsys):
        with pytest.raises(SystemExit, match="2"):
            self.benchmark.main(words.split())
        said = capsys.readouterr().err
        assert told in said and len(said) < 2000

    @pytest.mark.parametrize(
        "words",
        (
            "--grid 8 999 999 --dim 12 --growth 9999999 --schemes joint --json",
            "--train 999999999 --schemes joint"))
    def test_what_is_too_large_is_said_in_a_line(self, words, monkeypatch):
        """Of a machine with less memory than is asked for; the first size alone is refused."""
        with pytest.raises(SystemExit, match="too large for this machine, use less") as error:
            self.benchmark.main(words.split())
        assert len(str(error.value)) < 2000 and "\n" not in str(error.value)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
    def test_a_device_that_is_not_there(self, capsys):
        with pytest.raises(SystemExit, match="2"):
            self.benchmark.main(["--device", "cuda"])
        assert "no CUDA device" in capsys.readouterr().err

    @pytest.mark.parametrize("scheme", ("joint", "joint+joint"))
    def test_utilisation_counts_forward_three_times(self, scheme, capsys):
        """For 2 clips of 2 x 8 patches and a class token, blocks of joint attention, by hand."""
        depth = len(scheme.split("+"))
        size = dict(dim=24, depth=depth, heads=2, num_classes=5, num_frames=2, image_size=(32, 64))
        row = self.benchmark.utilisation(scheme, torch.randn(2, 3, 2, 32, 64), repeats=1, **size)
        N = 1 + 16
        macs = (
            depth * (4 * N * 24**2 + 2 * N**2 * 24 + 8 * N * 24**2) + 16 * 3 * 16**2 * 24 + 24 * 5)
        assert row["tflops"] * 1e12 * row["step_ms"] / 1e3 == pytest.approx(2 * 3 * 2 * macs)
        self.benchmark.print_utilisation([("joint", dict(step_ms=20.0, tflops=1.5))], peak=6.0)
        lines = capsys.readouterr().out.splitlines()
        assert lines[1].split() == ["joint", "20.0", "1.50", "25.0%"]

    def test_targets_say_what_is_missed(self, capsys):
        assert self.benchmark.print_targets([("one", 0.5, 0.5)])
        assert not self.benchmark.print_targets([("one", 0.5, 0.6), ("two", 0.7, 0.6)])
        lines = capsys.readouterr().out.splitlines()
        assert [line.endswith("MISSED") for line in lines] == [False, False, True]
