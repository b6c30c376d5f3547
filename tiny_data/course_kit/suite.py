"""The checks of every function, and the mistakes that are known by name."""

import math
from functools import partial

import torch

from . import oracles
from .checks import (B, D, EVEN, GRID, ODD, Gradients, Half, Handed, Indices, Make, Numbers, Price,
    Refuses,
                     Sight, Values, d, h, kind_of)
from .worker import HANDED_OVER

# ==== MISTAKES INSIDE A SOFTMAX ===============================================================

only_if_square = lambda q, k: q if q.shape[2] == k.shape[2] else None


def scaled(power):
    return lambda q, k, v: (q @ k.mT * q.shape[-1] ** power).softmax(-1) @ v


def scaled_by(factor):
    return lambda q, k, v: (q @ k.mT * factor(q, k)).softmax(-1) @ v


def softmax_over(axis):
    return lambda q, k, v: (q @ k.mT / q.shape[-1] ** 0.5).softmax(axis) @ v


SOFTMAX = [
    ("the scale 1/sqrt(d) is missing", scaled(0.0)),
    ("the scores are divided by d, not by sqrt(d)", scaled(-1.0)),
    ("the scores are multiplied by sqrt(d), not divided", scaled(0.5)),
    ("the scale uses the width of all heads, D, not that of one head, d",
     scaled_by(lambda q, k: (q.shape[1] * q.shape[3]) ** -0.5)),
    ("the scale uses the number of keys, not the width d",
    scaled_by(lambda q, k: k.shape[-2] ** -0.5)),
    ("the scale uses the number of heads, not the width d",
    scaled_by(lambda q, k: q.shape[1] ** -0.5)),
    ("the softmax runs over the queries, not the keys", softmax_over(-2)),
    ("the softmax runs over the heads, not the keys", softmax_over(1)),
    ("the softmax runs over the batch, not the keys", softmax_over(0)),
    ("there is no softmax: the scores themselves are the weights", lambda q, k,
    v: q @ k.mT @ v / q.shape[-1] ** 0.5),
    ("there is no softmax and no scale: the scores are the weights", lambda q, k, v: q @ k.mT @ v),
    ("the weights are exp(scores) and are not divided by their sum",
     lambda q, k, v: (q @ k.mT / q.shape[-1] ** 0.5).exp() @ v),
    ("the weights are a sigmoid of the scores, no softmax",
     lambda q, k, v: (q @ k.mT / q.shape[-1] ** 0.5).sigmoid() @ v),
    ("it is the plain mean of what is attended to", lambda q, k, v: scaled(-0.5)(0 * q, k, v)),
    ("the sum of values is returned, not a weighted mean", lambda q, k,
    v: 0 * q + v.sum(-2, keepdim=True)),
    ("queries and keys are swapped", lambda q, k, v: scaled(-0.5)(k, q, v)),
    ("the keys are used as values", lambda q, k, v: scaled(-0.5)(q, k, k)),
    ("the queries are used as values", lambda q, k, v: scaled(-0.5)(q, k, q)),
    ("the values are used as keys", lambda q, k, v: scaled(-0.5)(q, v, v)),
    ("the queries are used as keys", lambda q, k, v: scaled(-0.5)(q, q, v)),
    ("the values come back as they were", lambda q, k, v: v),
]


def with_softmax(oracle, *args, **options):
    """The named mistakes inside a softmax, each made in every group of an oracle."""
    return [(words, partial(oracle, *args, how=how, **options)) for words, how in SOFTMAX]


# ==== MISTAKES IN THE ORDER OF TOKENS =========================================================


def reordered(x, grid, order):
    """The tokens as they look to one who takes (T H W) to be in another order, `order` of the
    axes.
    """
    C, sizes = x.shape[2] - math.prod(grid), [grid[axis] for axis in order]
    patches = x[:, :, C:].unflatten(2, sizes).movedim((2, 3, 4), [2 + axis for axis in order])
    return torch.cat([x[:, :, :C], patches.flatten(2, 4)], dim=2)


def back_in_order(x, grid, order):
    C = x.shape[2] - math.prod(grid)
    patches = x[:, :, C:].unflatten(2, grid).permute(0, 1, *(2 + axis for axis in order), 5)
    return torch.cat([x[:, :, :C], patches.flatten(2, 4)], dim=2)


def in_order(oracle, q, k, v, grid, order, there=True, back=True):
    if there:
        q, k, v = (reordered(x, grid, order) for x in (q, k, v))
    out = oracle(q, k, v, grid)
    return back_in_order(out, grid, order) if back else out


ORDERS = [
    ("tokens are read in the order (S T), not (T S): T and S are swapped", dict(order=(1, 2, 0))),
    ("tokens are read in the order (T W H), not (T H W): H and W are swapped",
    dict(order=(0, 2, 1))),
    ("tokens are read in the order (H T W), not (T H W): T and H are swapped",
    dict(order=(1, 0, 2))),
    ("q, k and v are read in the order (S T), not (T S), on the way in only",
    dict(order=(1, 2, 0), back=False)),
    ("the result comes back in the order (S T), not (T S)", dict(order=(1, 2, 0), there=False)),
    ("the result comes back in the order (T W H): H and W are swapped",
    dict(order=(0, 2, 1), there=False)),
]


def with_orders(oracle, q, k, v, grid):
    return [(words, partial(in_order, oracle, q, k, v, grid, **how)) for words, how in ORDERS]


# ==== MISTAKES WITH CLASS TOKENS ==============================================================


def to_everything(oracle, q, k, v, grid):
    """The oracle, but a class token attends to all tokens."""
    C = q.shape[2] - math.prod(grid)
    out = oracle(q, k, v, grid).clone()
    out[:, :, :C] = oracles.softmax(q[:, :, :C], k, v)
    return out


def not_asked(oracle, q, k, v, grid, by):
    """The oracle, but the class token's row is something else."""
    C = q.shape[2] - math.prod(grid)
    out = oracle(q, k, v, grid).clone()
    out[:, :, :C] = by(q, k, v, C)
    return out


def with_class_tokens(oracle, q, k, v, grid, copies=True):
    ask = partial(not_asked, oracle, q, k, v, grid)
    T = grid[0]
    found = [
        ("the class token attends to all tokens at once",
        partial(to_everything, oracle, q, k, v, grid)),
        ("the class token gets zeros", partial(ask, by=lambda q, k, v, C: 0.0)),
        ("the class token comes back as its own value",
        partial(ask, by=lambda q, k, v, C: v[:, :, :C])),
        ("the class token comes back as its query",
        partial(ask, by=lambda q, k, v, C: q[:, :, :C])),
    ]
    if copies:
        rules = [("the copies of the class token are summed, not averaged",
            lambda x: torch.stack(x).sum(0)),
                 ("the class token is taken from the first group, not the mean of all",
                 lambda x: x[0]),
                 ("the class token is taken from the last group, not the mean of all",
                 lambda x: x[-1]),
                 ("the class token is the largest of its copies, not their mean",
                  lambda x: torch.stack(x).amax(0)),
                 (f"the sum of the copies is divided by T = {T}, which is not their number",
                  lambda x: torch.stack(x).sum(0) / T)]
        found += [(words, partial(oracle, q, k, v, grid, rule=rule)) for words, rule in rules]
    for words, knobs in [("the class token is forgotten among the keys", dict(keeps=False)),
                         ("no patch attends to the class token, which gets zeros",
                         dict(joins=False)),
                         ("the class token takes part; it should stand aside", dict(joins=True))]:
        found.append((words, partial(oracle, q, k, v, grid, **knobs)))
    return found


# ==== A MECHANISM: the checks that all of them share ==========================================


def each(C, grid):
    return {"clip": 1, "frame": grid[0], "none": 0}[C]


def mechanism(name, make, oracle, kinds, sees=None, price=None, mistakes=lambda *a: [], odd=None,
    more=()):
    """Checks of a function of (q, k, v, grid, *more): parts values, class tokens, odd grids,
    gradients, price.
    """
    checks = []
    ask = lambda q, k, v, grid: oracle(q, k, v, grid, *more)
    if sees:
        q, k, v = make.qkv((3, 4, 5))
        checks.append(Sight(name, "values", "", [q, k, v, (3, 4, 5), *more], grid=(3, 4, 5),
            sees=sees))
    for grid, sizes in ((EVEN, {}), ((5, 2, 8), dict(clips=1, heads=2, width=4))):
        q, k, v = make.qkv(grid, **sizes)
        wrong = mistakes(q, k, v, grid)
        wrong += with_softmax(oracle, q, k, v, grid, *more) + with_orders(ask, q, k, v, grid)
        checks.append(Values(name, "values", kind_of(0, grid), [q, k, v, grid, *more], grid=grid,
                             expect=partial(oracle, q, k, v, grid, *more), mistakes=wrong))
    for kind in kinds:
        q, k, v = make.qkv(EVEN, each(kind, EVEN))
        wrong = mistakes(q, k, v, EVEN) + with_class_tokens(ask if more else oracle, q, k, v, EVEN,
            kind == "clip")
        checks.append(Values(name, "class tokens", kind_of(each(kind, EVEN), EVEN),
            [q, k, v, EVEN, *more],
                             grid=EVEN, expect=partial(oracle, q, k, v, EVEN, *more),
                             mistakes=wrong))
    for grid in [GRID, *ODD]:
        q, k, v = make.qkv(grid)
        checks.append(Values(name, "odd grids", "", [q, k, v, grid, *more], grid=grid,
                             expect=partial(odd or oracle, q, k, v, grid, *more),
                             mistakes=mistakes(q, k, v, grid) + with_orders(ask, q, k, v, grid)))
    for part, C in (("gradients", 0), ("class tokens", 1)):
        q, k, v = make.qkv(EVEN, C)
        checks.append(Gradients(name, part, kind_of(C, EVEN), [q, k, v, EVEN, *more], grid=EVEN,
                                form=oracle, weight=make(*v.shape)))
    if price:
        for grid in ((4, 6, 8), (8, 4, 6)):
            checks.append(priced(name, make.qkv(grid, heads=2, clips=1, width=16), grid, price,
                more))
    q, k, v = make.qkv(EVEN)
    checks.append(Refuses(name, "errors", "71 tokens on a grid of 72",
        [q[:, :, 1:], k[:, :, 1:], v[:, :, 1:],
                          EVEN, *more], shows=(71,), grid=EVEN))
    return checks


def priced(name, qkv, grid, price, more=(), options=None):
    q = qkv[0]
    T, H, W = grid
    C, wide = q.shape[2] - T * H * W, q.shape[1] * q.shape[3]
    names = dict(T=T, H=H, W=W, S=H * W, D=wide, h=q.shape[1], d=q.shape[3], C=C, c=min(C, 1),
        min=min, max=max,
                 sum=sum, range=range, N=q.shape[2])
    return Price(name, "price", "", [*qkv, grid, *more], options or {}, grid=grid, formula=price,
                 allowed=eval(price, names), spare=4 * q.numel())


# ==== 1. ATTEND ===============================================================================


def attend(make):
    q, k, v = make.qkv((3, 2, 4))
    pair = lambda q, k, v: (oracles.softmax(q, k, v), oracles.weights(q, k))
    wrong = [(words, partial(how, q, k, v)) for words, how in SOFTMAX]
    checks = [Values("attend", "values", "as many queries as keys", [q, k, v], mistakes=wrong,
                     expect=partial(oracles.softmax, q, k, v)),
              Values("attend", "values", "return_weights=True, what it attends to", [q, k, v],
                     dict(return_weights=True), fused=False, mistakes=wrong, pick=lambda x: x[0],
                     expect=partial(oracles.softmax, q, k, v))]
    q, k, v = make(3, 5, 11, 7), make(3, 5, 13, 7), make(3, 5, 13, 4)
    checks.append(Values("attend", "values", "11 queries, 13 keys, values of width 4", [q, k, v],
                         expect=partial(oracles.softmax, q, k, v),
                         mistakes=[(words, partial(how, q, k, v)) for words, how in SOFTMAX]))
    for lead in ((), (4,), (2, 3, 2, 2)):
        q, k, v = make(*lead, 6, 5), make(*lead, 9, 5), make(*lead, 9, 3)
        checks.append(Values("attend", "leading axes", f"{len(lead)} leading axes", [q, k, v],
                             expect=partial(oracles.softmax, q, k, v)))
    q, k, v = make(2, 3, 8, 5), make(2, 3, 7, 5), make(2, 3, 7, 4)
    option = dict(return_weights=True)
    over = lambda axis, scores=q @ k.mT / 5**0.5: scores.softmax(axis)
    wrong = [("the weights are the scores, before the softmax",
        partial(torch.matmul, q, k.mT / 5**0.5)),
             ("the softmax of the weights runs over the queries", partial(over, -2)),
             ("the weights come back transposed", lambda over=over: over(-1).mT)]
    checks.append(Values("attend", "weights", "return_weights=True, the weights", [q, k, v], option,
                         pick=lambda x: x[1], expect=partial(oracles.weights, q, k), mistakes=wrong,
                         fused=False))
    q, k, v = make(2, 3, 8, 5), make(2, 3, 7, 5), make(2, 3, 7, 4)
    checks.append(Gradients("attend", "gradients", "", [q, k, v], form=oracles.softmax,
        weight=make(2, 3, 8, 4)))
    checks.append(Gradients("attend", "gradients", "return_weights=True", [q, k, v], option,
                            form=lambda *x, return_weights: oracles.softmax(*x),
                            weight=make(2, 3, 8, 4)))
    q, k, v = make(1, 2, 40, 16), make(1, 2, 56, 16), make(1, 2, 56, 24)
    checks.append(Price("attend", "price", "", [q, k, v], formula="I*J*(d + e) in each head",
                        allowed=2 * 40 * 56 * 40, spare=4 * q.numel()))
    q, k, v = make.qkv(EVEN)
    for option in ({}, dict(return_weights=True)):
        checks.append(Half("attend", "precision",
            "scores in the hundreds" + (", weights" if option else ""),
                           [q, k, v], option, times=20.0, relative=0.25, expect=lambda q, k, v,
                           **_: oracles.softmax(q, k, v),
                           pick=lambda x: x[0] if isinstance(x, tuple) else x))
    q, k, v = make(2, 3, 8, 5), make(2, 3, 7, 5), make(2, 3, 7, 4)
    checks.append(Refuses("attend", "errors", "keys of another width", [q, k[..., :4], v],
        shows=(5, 4)))
    checks.append(Refuses("attend", "errors", "6 values for 7 keys", [q, k, v[..., :6, :]],
        shows=(6, 7)))
    return checks


# ==== 2. DIVIDED ==============================================================================


def handed_attention(name, make, oracle):
    """An attention function that is handed over has to be the one that is used."""
    q, k, v = make.qkv(EVEN)
    how = Handed("attend_to_the_first")
    wrong = [("the function handed over as `attention` is ignored", partial(oracle, q, k, v, EVEN))]
    return Values(name, "attention", "another attention function handed over", [q, k, v, EVEN],
                  dict(attention=how), grid=EVEN, expect=partial(oracle, q, k, v, EVEN, how=how),
                  mistakes=wrong)


def space_attention(make):
    wrong = lambda q, k, v, grid: [
        ("all tokens are attended to, not those of the own frame",
        partial(oracles.softmax, q, k, v)),
        ("patches of one position are attended to: that is time attention",
        partial(oracles.time, q, k, v, grid)),
        ("only the own row is attended to", partial(oracles.in_groups, q, k, v, grid, lambda t, y,
        x: (t, y))),
    ]
    checks = mechanism("space_attention", make, oracles.space, ("clip", "frame"), lambda q,
        p: p[0] == q[0],
                       "2*T*(S + c)**2*D", wrong)
    return checks + [handed_attention("space_attention", make, oracles.space)]


def time_attention(make):
    wrong = lambda q, k, v, grid: [
        ("all tokens are attended to, not those at the own position",
        partial(oracles.softmax, q, k, v)),
        ("the own frame is attended to: that is space attention",
        partial(oracles.space, q, k, v, grid)),
        ("the own row through all frames is attended to, not the own position",
         partial(oracles.in_groups, q, k, v, grid, lambda t, y, x: y)),
    ]
    checks = mechanism("time_attention", make, oracles.time, ("clip", "frame"), 
                       lambda q, p: p[1:] == q[1:],
                       "2*S*T**2*D", wrong)
    return checks + [handed_attention("time_attention", make, oracles.time)]


# ==== 3. SPARSE ===============================================================================


def local_attention(make):
    larger = [(a, b) for a in (True, False) for b in (True, False)]
    either = lambda q, k, v, grid: [oracles.local(q, k, v, grid, larger=way) for way in larger]
    half = oracles.halves(True)
    sees = lambda q, p: all(half(a, n) == half(b, n) for a, b, n in zip(q[1:], p[1:], (4, 6)))
    by = oracles.in_groups
    wrong = lambda q, k, v, grid: [
        ("the windows are halves of the time too", partial(by, q, k, v, grid, lambda t, y, x: (
            half(t, grid[0]), half(y, grid[1]), half(x, grid[2])))),
        ("the windows do not reach through all frames", partial(by, q, k, v, grid, lambda t, y, x: (
            t, half(y, grid[1]), half(x, grid[2])))),
        ("only the rows are halved", partial(by, q, k, v, grid, lambda t, y, x: half(y, grid[1]))),
        ("only the columns are halved", partial(by, q, k, v, grid, lambda t, y,
        x: half(x, grid[2]))),
        ("it is global attention", partial(oracles.lattices, q, k, v, grid)),
        ("all tokens are attended to", partial(oracles.softmax, q, k, v)),
    ]
    checks = mechanism("local_attention", make, oracles.local, ("clip",), None,
        "8*(C + T*S/4)**2*D", wrong, either)
    q, k, v = make.qkv((2, 4, 6))
    sight = Sight("local_attention", "values", "", [q, k, v, (2, 4, 6)], grid=(2, 4, 6), sees=sees)
    return [sight, *checks]


def global_attention(make):
    by = oracles.in_groups
    wrong = lambda q, k, v, grid: [
        ("every frame is attended to, not every other",
        partial(by, q, k, v, grid, lambda t, y, x: (y % 2, x % 2))),
        ("only the own frame is attended to", partial(by, q, k, v, grid, lambda t, y,
        x: (t, y % 2, x % 2))),
        ("every column is attended to, not every other",
        partial(by, q, k, v, grid, lambda t, y, x: (t % 2, y % 2))),
        ("every row is attended to, not every other",
        partial(by, q, k, v, grid, lambda t, y, x: (t % 2, x % 2))),
        ("patches whose t + y + x is alike odd or even are one group",
         partial(by, q, k, v, grid, lambda t, y, x: (t + y + x) % 2)),
        ("it is local attention", partial(oracles.local, q, k, v, grid)),
        ("all tokens are attended to", partial(oracles.softmax, q, k, v)),
    ]
    sees = lambda q, p: all(a % 2 == b % 2 for a, b in zip(q, p))
    return mechanism("global_attention", make, oracles.lattices, ("clip",), sees,
        "16*(C + T*S/8)**2*D", wrong)


# ==== 4. WINDOW ===============================================================================


def window_attention(make):
    def wrong(q, k, v, grid, w=1):
        ask = partial(oracles.window, q, k, v, grid, w)
        return [
            ("past the ends of the clip the window wraps round", partial(ask, ends="wrap")),
            ("past the ends of the clip zeros are attended to; a window should be smaller there",
             partial(ask, ends="zeros")),
            ("past the ends of the clip the last frame is repeated; a window should be smaller "
             "there",
             partial(ask, ends="repeat")),
            ("only frames ahead are attended to, not those behind", partial(ask, behind=0)),
            ("only frames behind are attended to, not those ahead", partial(ask, ahead=0)),
            ("the window ends one frame too early: t + window is part of it",
            partial(ask, ahead=w - 1)),
            ("the window starts one frame too late: t - window is part of it",
            partial(ask, behind=w - 1)),
            ("the window has `window` frames in all, not `window` to either side",
             partial(ask, ahead=w // 2, behind=(w - 1) // 2)),
            ("the window is one frame larger than asked for",
            partial(oracles.window, q, k, v, grid, w + 1)),
            ("only the own frame is attended to", partial(oracles.space, q, k, v, grid)),
            ("the own position is attended to, not whole frames",
            partial(oracles.in_groups, q, k, v, grid,
                                                                     oracles.by_place)),
            ("all frames are attended to", partial(oracles.softmax, q, k, v)),
        ]

    sees = lambda q, p: abs(q[0] - p[0]) <= 1
    cost = "2*sum(min(T, t + w + 1) - max(0, t - w) for t in range(T))*(S + c)**2*D"
    checks = mechanism("window_attention", make, oracles.window, ("clip", "frame"), None,
                       cost.replace("w", "1"), wrong)
    q, k, v = make.qkv((5, 2, 3))
    checks.insert(0, Sight("window_attention", "values", "", [q, k, v, (5, 2, 3)], grid=(5, 2, 3),
        sees=sees,
                           query=(2, 1, 1)))
    for w in (0, 2, 3, 9):
        q, k, v = make.qkv((6, 2, 3))
        ignored = [("the option window is ignored", partial(oracles.window, q, k, v, (6, 2, 3)))]
        checks.append(Values("window_attention", "window", f"window={w}", [q, k, v, (6, 2, 3)],
            dict(window=w),
                             grid=(6, 2, 3), expect=partial(oracles.window, q, k, v, (6, 2, 3), w),
                             mistakes=ignored + wrong(q, k, v, (6, 2, 3), w)))
    allowed = cost.replace("w", "2")
    checks.append(priced("window_attention", make.qkv((8, 4, 6), heads=2, clips=1, width=16),
        (8, 4, 6),
                         allowed, options=dict(window=2)))
    q, k, v = make.qkv(EVEN)
    checks.append(Refuses("window_attention", "errors", "window=-1", [q, k, v, EVEN],
        dict(window=-1), shows=(-1,)))
    return checks


# ==== 5. MIXING ===============================================================================


def shift(make):
    checks = []
    for label, offset, axis in [("one ahead", 1, 1), ("one back", -1, 1),
        ("two ahead, axis 0", 2, 0),
                                ("three back, axis 2", -3, 2), ("nothing", 0, 1),
                                ("last axis", 1, -1)]:
        x = make(4, 5, 6, 3)
        ask = partial(oracles.shift, x, offset, axis % 4)
        wrong = [("it moves in the wrong direction", partial(oracles.shift, x, -offset, axis % 4)),
                 ("it wraps round, from one end to the other", partial(ask, ends="wrap")),
                 ("positions at the ends keep what they had, in place of zeros",
                 partial(ask, ends="own")),
                 ("the end is repeated, in place of zeros", partial(ask, ends="repeat")),
                 ("`axis` is ignored: axis 1 is moved", partial(oracles.shift, x, offset, 1)),
                 ("`axis` is ignored: axis 0 is moved", partial(oracles.shift, x, offset, 0)),
                 ("only one position is moved, whatever the offset",
                  partial(oracles.shift, x, (offset > 0) - (offset < 0), axis % 4)),
                 ("nothing is moved", lambda x=x: x)]
        part = "axes" if axis != 1 else "values"
        checks.append(Values("shift", part, f"{label}: offset={offset}, axis={axis}",
            [x, offset, axis],
                             expect=ask, mistakes=wrong))
    for offset in (4, 9, -4, -11):
        x = make(2, 4, 3)
        checks.append(Values("shift", "far", f"offset={offset} on an axis of 4", [x, offset, 1],
                             expect=lambda x=x: torch.zeros_like(x),
                             mistakes=[("an offset beyond the axis moves nothing", lambda x=x: x)]))
    x = make(3, 5, 4)
    checks.append(Gradients("shift", "gradients", "", [x, -2, 1], form=oracles.shift, leaves=("x",),
        which=(0,),
                            weight=make(3, 5, 4)))
    return checks


def wrong_mixing(ask, **given):
    """Mistakes of mixing; ask(**knobs) is the oracle."""
    forth = lambda w: [i for i in range(1, w + 1)] + [-i for i in range(1, w + 1)]
    back = lambda w: [sign * i for i in range(1, w + 1) for sign in (-1, 1)]
    return [
        ("the channels come from the wrong side, next and previous frame swapped",
        partial(ask, direction=-1)),
        ("past the ends of the clip the frames wrap round", partial(ask, ends="wrap")),
        ("frames at the ends keep channels of their own, in place of zeros",
        partial(ask, ends="own")),
        ("frames at the ends take the last frame's channels, in place of zeros",
        partial(ask, ends="repeat")),
        ("the order of the frames is 1, 2, ..., -1, -2, ..., not 1, -1, 2, -2, ...",
        partial(ask, order=forth)),
        ("the previous frame comes before the next", partial(ask, order=back)),
        ("only the next frames give channels, not the previous",
         partial(ask, order=lambda w: list(range(1, w + 1)))),
        ("nothing is moved", partial(ask, moved=0.0)),
        *[(f"the option {name} is ignored", partial(ask, **{name: value}))
          for name, value in dict(window=1, moved=0.5).items() if given.get(name, value) != value],
    ]


def mix_frames(make):
    checks = []
    for part, window, moved in [("values", 1, 0.5), ("values", 1, 0.5), ("window", 2, 0.8),
        ("window", 3, 1.0),
                                ("window", 0, 0.5), ("moved", 1, 1.0), ("moved", 1, 0.0),
                                ("moved", 1, 0.34)]:
        T = 5 if checks else 4
        x = make(2 * T, 3, 4, 8)
        options = {} if part == "values" else dict(window=window, moved=moved)
        ask = partial(oracles.mix_frames, x, T, **(dict(window=window, moved=moved) | options))
        taken = lambda share, x=x, T=T, w=window, m=moved: partial(oracles.mix_frames, x, T, w, m,
            share=share)
        wrong = wrong_mixing(ask, **options) + [
            ("each of the other frames gives the share `moved`; it is their share in all",
            taken(int(moved * 8))),
            ("the frames of the batch are taken for one clip",
             lambda x=x, w=window, m=moved: oracles.mix_frames(x, len(x), w, m)),
            ("(T B), not (B T), is the order of the first axis",
             lambda x=x, T=T, w=window, m=moved: oracles.mix(
                 x.unflatten(0, (T, 2)).transpose(0, 1), w, m).transpose(0, 1).flatten(0, 1))]
        label = ", ".join(f"{key}={value}" for key, value in options.items())
        checks.append(Values("mix_frames", part, label or "window=1, half of the channels moved",
            [x, T], options,
                             expect=ask, mistakes=wrong))
    x = make(10, 2, 3, 8)
    checks.append(Gradients("mix_frames", "gradients", "", [x, 5], form=oracles.mix_frames,
        leaves=("x",),
                            which=(0,), weight=make(10, 2, 3, 8)))
    return checks


def mixing_attention(make):
    def wrong(q, k, v, grid, **options):
        ask = partial(oracles.mixing, q, k, v, grid, **options)
        return [*wrong_mixing(ask, **options),
                ("keys are mixed, but values are not", partial(ask, values=False)),
                ("values are mixed, but keys are not", partial(ask, keys=False))]

    checks = mechanism("mixing_attention", make, oracles.mixing, ("clip", "frame"), None,
        "2*T*(S + c)**2*D", wrong)
    q, k, v = make.qkv((5, 2, 3))
    checks.insert(0, Sight("mixing_attention", "values", "", [q, k, v, (5, 2, 3)], grid=(5, 2, 3),
        query=(2, 1, 1),
                           sees=lambda q, p: abs(q[0] - p[0]) <= 1))
    for part, options in [("options", dict(window=2, moved=0.8)), ("options", dict(window=0)),
                          ("options", dict(moved=0.0)), ("options", dict(window=3, moved=1.0))]:
        q, k, v = make.qkv((5, 2, 3), 5)
        checks.append(Values("mixing_attention", part, str(options), [q, k, v, (5, 2, 3)], options,
            grid=(5, 2, 3),
                             expect=partial(oracles.mixing, q, k, v, (5, 2, 3), **options),
                             mistakes=wrong(q, k, v, (5, 2, 3), **options)))
    for C, kind in ((0, "none"), (1, "clip"), (3, "frame")):
        q, k, v = make.qkv((3, 2, 4), C)
        ask = partial(oracles.mixing, q, k, v, (3, 2, 4), summary=True)
        more = [("the option summary is ignored", partial(oracles.mixing, q, k, v, (3, 2, 4))),
                ("the summaries are mixed too; they should be means of what was before", partial(
                    ask, summaries="mixed")),
                ("each frame gets its own summary only, not those of all frames",
                partial(ask, summaries="own"))]
        if C:
            more.append(("the class token is part of the mean of its frame", partial(
                ask, summaries="with class token")))
        checks.append(Values("mixing_attention", "summary", f"summary=True, {kind_of(C, EVEN)}",
                             [q, k, v, (3, 2, 4)], dict(summary=True), grid=(3, 2, 4), expect=ask,
                             mistakes=more))
    q, k, v = make.qkv(EVEN)
    for options, shows in [(dict(window=-1), (-1,)), (dict(moved=1.5), (1.5,)),
        (dict(moved=-0.25), (-0.25,)),
                           (dict(window=3, moved=0.5), ())]:
        label = ", ".join(f"{key}={value}" for key, value in options.items())
        checks.append(Refuses("mixing_attention", "errors", f"{label} with d={d}", [q, k, v, EVEN],
            options,
                              shows=shows, grid=EVEN))
    return checks


# ==== 6. ORTHOFORMER ==========================================================================


def untied(make, shape, *rest, **options):
    """Vectors in which no two candidates are so alike that rounding decides."""
    for _ in range(50):
        x = make(*shape)
        if shape[-1] > 1 and make.generator is not None:
            x = x * (0.5 + torch.rand(*shape[:-1], 1, generator=make.generator, dtype=x.dtype))
        if oracles.greedy(x, *rest, **options) is not None:
            return x
    raise RuntimeError("all draws have ties")


CRITERIA = ("cosine", "inner product")


def most_orthogonal_subset(make):
    checks = []
    for part, start, criterion, count in [
            ("values", 0, CRITERIA[0], 9), ("values", 0, CRITERIA[0], 13),
            ("start", 4, CRITERIA[0], 9),
            ("criterion", 0, CRITERIA[1], 9), ("criterion", 3, CRITERIA[1], 13)]:
        options = {} if part == "values" else dict(start=start, criterion=criterion)
        x = untied(make, (2, 2, 19, 8), count, start=start, criterion=criterion)
        ask = partial(oracles.greedy, x, count, start=start, criterion=criterion)
        cosine = criterion == CRITERIA[0]
        other = sum if cosine else max
        first = lambda x=x, n=count, given=(start, criterion): oracles.greedy(x[:1, :1], n,
            *given).expand(2, 2, n)
        last = lambda table: table[-1]
        wrong = [
            ("the largest score is picked, not the smallest: argmax for argmin",
            partial(ask, choose=max)),
            ("the absolute value is missing", partial(ask, absolute=False)),
            ("the cosines are summed where the largest is asked for" if cosine else
             "the largest product is taken where their sum is asked for",
             partial(ask, combine=other)),
            ("only the newest pick counts, not all before it", partial(
                ask, combine=lambda scores: last(list(scores)))),
            ("the smallest cosine to the picks counts, not the largest", partial(ask, combine=min)),
            ("the vectors are not normalised: inner products, no cosines" if cosine else
             "the vectors are normalised: cosines, no inner products",
             partial(ask, normalise=not cosine)),
            ("only the vectors picked are normalised, or only the candidates",
             partial(ask, half=True)),
            ("one choice is made for all rows", first),
            ("`start` is ignored", partial(ask, start=0)),
            ("`criterion` is ignored", partial(oracles.greedy, x, count, start=start)),
            ("the picks are sorted; they should be in the order of picking",
            lambda ask=ask: ask().sort(-1).values),
            ("the first vectors are picked, in their order",
             lambda count=count: torch.arange(count).expand(2, 2, count)),
        ]
        label = f"count={count}" + "".join(f", {key}={value!r}" for key, value in options.items())
        checks.append(Indices("most_orthogonal_subset", part, label, [x, count], options,
            expect=ask,
                              mistakes=wrong))
    axes = torch.eye(6, dtype=torch.float64)[[0, 1, 2, 0, 3, 4, 1, 5]] * (1 + make(8, 1).abs())
    x = untied(make, (5, 3), 5)
    checks.append(Indices("most_orthogonal_subset", "all of them",
        "count = number of vectors, one leading axis less",
                          [x, 5], expect=partial(oracles.greedy, x, 5),
                          mistakes=[("a vector is picked twice", lambda: None)]))
    for row in untied(make, (1, 9, 4), 4), untied(make, (7, 4), 1):
        count = 4 if row.ndim == 3 else 1
        checks.append(Indices("most_orthogonal_subset", "all of them",
            f"count={count}, x {tuple(row.shape)}",
                              [row, count], expect=partial(oracles.greedy, row, count)))
    for label, args, options, shows in [("count=0", [axes, 0], {}, (0,)),
        ("count=9 of 8 vectors", [axes, 9], {}, (9,)),
                                        ("unknown criterion", [axes, 3], dict(criterion="most"),
                                        ("most",))]:
        checks.append(Refuses("most_orthogonal_subset", "errors", label, args, options,
            shows=shows))
    return checks


def orthoformer_attention(make):
    P = 5
    checks = []

    def wrong(q, k, v, grid, prototypes):
        ask = partial(oracles.orthoformer, q, k, v, grid, prototypes)
        soft = oracles.softmax
        return [("the second step has no softmax",
            partial(ask, again=lambda q, p, f: q @ p.mT @ f / d**0.5)),
                ("it is exact attention: the prototypes are not used", partial(soft, q, k, v)),
                ("prototypes attend to the values by themselves: P is used as keys and found is "
                 "left out",
                 partial(soft, q, prototypes, v[:, :, :P])),
                ("the prototypes are the keys of the first step",
                lambda: soft(q, k, soft(k, prototypes, v[:, :, :P]))),
                ("the result of the first step comes back", lambda: soft(prototypes, k, v)),
                ("the scale of the second step is missing", partial(ask, again=lambda q, p, f: (
                    q @ p.mT).softmax(-1) @ f)),
                ("the scale of the first step is missing", lambda: soft(q, prototypes, (
                    prototypes @ k.mT).softmax(-1) @ v)),
                *with_softmax(oracles.orthoformer, q, k, v, grid, prototypes)]

    for part, grid, C in [("values", EVEN, 0), ("values", GRID, 0), ("class tokens", EVEN, 1),
                          ("class tokens", EVEN, 3), ("odd grids", (1, 1, 1), 0),
                          ("odd grids", (5, 1, 1), 0)]:
        q, k, v = make.qkv(grid, C)
        p = make(B, h, P, d)
        more = []
        if C:
            more = [(words, lambda rule=rule, q=q, k=k, v=v, p=p,
                C=C: torch.cat(rule(q, k, v, p, C), dim=2))
                    for words, rule in [
                        ("the class token attends to all tokens, without prototypes", lambda q, k,
                        v, p, C: [
                            oracles.softmax(q[:, :, :C], k, v),
                            oracles.orthoformer(q, k, v, None, p)[:, :, C:]]),
                        ("the class token is not among the keys", lambda q, k, v, p, C: [
                            oracles.orthoformer(q, k[:, :, C:], v[:, :, C:], None, p)]),
                        ("the class token gets zeros", lambda q, k, v, p, C: [
                            0 * q[:, :, :C], oracles.orthoformer(q, k, v, None, p)[:, :, C:]])]]
        checks.append(Values("orthoformer_attention", part, kind_of(C, grid), [q, k, v, grid, p],
            grid=grid,
                             expect=partial(oracles.orthoformer, q, k, v, grid, p),
                             mistakes=more + wrong(q, k, v, grid, p)))
    for part, C in (("gradients", 0), ("class tokens", 1)):
        q, k, v = make.qkv(EVEN, C)
        p = make(B, h, P, d)
        checks.append(Gradients("orthoformer_attention", part, kind_of(C, EVEN), [q, k, v, EVEN, p],
                                grid=EVEN, form=oracles.orthoformer, which=(0, 1, 2, 4),
                                leaves=("q", "k", "v", "prototypes"), weight=make(*q.shape)))
    q, k, v = make.qkv((4, 6, 8), heads=2, clips=1, width=16)
    checks.append(priced("orthoformer_attention", [q, k, v], (4, 6, 8), "4*(C + T*S)*12*D",
        [make(1, 2, 12, 16)]))
    q, k, v = make.qkv(EVEN)
    checks.append(Half("orthoformer_attention", "precision", "", [q, k, v, EVEN, make(B, h, P, d)],
                       expect=oracles.orthoformer, times=4.0))
    return checks


# ==== 7. LINEAR ===============================================================================


def attend_linearly(make):
    positive = partial(make, positive=True)
    checks = []
    for part, I, J, M, e in [("values", 12, 12, 5, 5), ("values", 14, 11, 5, 3),
        ("values", 3, 2, 16, 6),
                             ("values", 40, 50, 4, 3)]:
        q, k, v = positive(B, h, I, M), positive(B, h, J, M), make(B, h, J, e)
        w = lambda q=q, k=k: q @ k.mT
        wrong = [("the weights are not divided by their sum", lambda q=q, k=k, v=v: q @ k.mT @ v),
                 ("a softmax is taken", lambda q=q, k=k, v=v: (q @ k.mT).softmax(-1) @ v),
                 ("it is softmax attention", lambda q=q, k=k, v=v: oracles.softmax(q, k, v)),
                 ("the weights are divided by their number, not by their sum",
                  lambda q=q, k=k, v=v: q @ k.mT @ v / k.shape[-2]),
                 ("the sum that divides runs over the queries",
                  lambda q=q, k=k, v=v: (q @ k.mT / (q @ k.mT).sum(-2, keepdim=True)) @ v),
                 ("the scores are divided by sqrt(d)", lambda q=q, k=k,
                 v=v: oracles.linearly(q, k, v) / q.shape[-1] ** 0.5),
                 ("queries and keys are swapped", lambda q=q, k=k, v=v: oracles.linearly(k, q, v)),
                 ("the sum that divides runs over heads", lambda q=q, k=k, v=v: q @ k.mT @ v / (
                     q @ k.mT).sum((1, 3), keepdim=True)),
                 ("it is the plain mean of the values", lambda q=q,
                 v=v: v.mean(-2, keepdim=True).expand(
                     *q.shape[:-1], v.shape[-1]))]
        checks.append(Values("attend_linearly", part, f"{I} queries, {J} keys of {M} features",
            [q, k, v],
                             expect=partial(oracles.linearly, q, k, v), mistakes=wrong))
    q, k, v = positive(7, 6), positive(9, 6), make(9, 4)
    checks.append(Values("attend_linearly", "leading axes", "no leading axes", [q, k, v],
                         expect=partial(oracles.linearly, q, k, v)))
    q, k, v = positive(2, 2, 3, 7, 6), positive(2, 2, 3, 9, 6), make(2, 2, 3, 9, 4)
    checks.append(Values("attend_linearly", "leading axes", "three leading axes", [q, k, v],
                         expect=partial(oracles.linearly, q, k, v)))
    q, k, v = positive(B, h, 7, 6), positive(B, h, 9, 6), make(B, h, 9, 4)
    checks.append(Values("attend_linearly", "eps", "eps=2.5", [q, k, v], dict(eps=2.5),
                         expect=partial(oracles.linearly, q, k, v, 2.5),
                         mistakes=[("eps is ignored", partial(oracles.linearly, q, k, v))]))
    zero = torch.zeros(B, h, 7, 6, dtype=torch.float64)
    checks.append(Values("attend_linearly", "eps", "features that are all zero", [zero, k, v],
                         expect=lambda: torch.zeros(B, h, 7, 4, dtype=torch.float64)))
    checks.append(Gradients("attend_linearly", "gradients", "", [q, k, v], form=oracles.linearly,
                            weight=make(B, h, 7, 4)))
    for I, M, what in ((300, 16, "many tokens: keys and values first"),
        (6, 48, "few tokens: the weights themselves")):
        q, k, v = positive(1, 2, I, M), positive(1, 2, I, M), make(1, 2, I, M)
        allowed = 2 * (min(2 * I * M * M, I * I * 2 * M) + I * M)
        checks.append(Price("attend_linearly", "price", what, [q, k, v], allowed=allowed,
                            formula="min((I + J)*M*e, I*J*(M + e)) + I*M in each head",
                            spare=0.15 * allowed if I < 10 else 4 * q.numel()))
    return checks


def linear_attention(make):
    def ask(q, k, v, grid, floor=None, eps=1e-6, divide=True):
        a, b = oracles.features(q, floor), oracles.features(k, floor)
        return oracles.linearly(a, b, v, eps) if divide else a @ b.mT @ v

    elu = lambda x: torch.nn.functional.elu(x) + 1

    def wrong(q, k, v, grid):
        return [("the floor 1/sqrt(d) is missing: phi(x) = ReLU(x)",
            partial(ask, q, k, v, grid, floor=0.0)),
                ("the floor is 1/d, not 1/sqrt(d)",
                partial(ask, q, k, v, grid, floor=1 / q.shape[-1])),
                ("the floor is sqrt(d), not 1/sqrt(d)",
                partial(ask, q, k, v, grid, floor=q.shape[-1] ** 0.5)),
                ("the floor is 1, not 1/sqrt(d)", partial(ask, q, k, v, grid, floor=1.0)),
                ("the floor is eps, not 1/sqrt(d)", partial(ask, q, k, v, grid, floor=1e-6)),
                ("phi(x) = elu(x) + 1, which is another paper's",
                lambda: oracles.linearly(elu(q), elu(k), v)),
                ("phi is exp", lambda: oracles.linearly(q.exp(), k.exp(), v)),
                ("phi is a softmax over the channels",
                lambda: oracles.linearly(q.softmax(-1), k.softmax(-1), v)),
                ("q and k are used as they are, without phi", lambda: oracles.linearly(q, k, v)),
                ("phi is applied to q only", lambda: oracles.linearly(oracles.features(q), k, v)),
                ("phi is applied to k only", lambda: oracles.linearly(q, oracles.features(k), v)),
                ("phi is applied to the values too", lambda: ask(q, k, oracles.features(v), grid)),
                ("the weights are not divided by their sum",
                partial(ask, q, k, v, grid, divide=False)),
                ("it is softmax attention", lambda: oracles.softmax(q, k, v)),
                ("queries and keys are swapped", lambda: ask(k, q, v, grid)),
                ("it attends inside each frame",
                partial(oracles.in_groups, q, k, v, grid, oracles.by_frame, how=(
                    lambda q, k, v: ask(q, k, v, None))))]

    name, checks = "linear_attention", []
    for part, grid, C in [("values", EVEN, 0), ("values", GRID, 0), ("class tokens", EVEN, 1),
                          ("class tokens", EVEN, 3), ("odd grids", (1, 1, 1), 0),
                          ("odd grids", (5, 1, 1), 0)]:
        q, k, v = make.qkv(grid, C)
        checks.append(Values(name, part, kind_of(C, grid), [q, k, v, grid], grid=grid,
                             expect=partial(ask, q, k, v, grid), mistakes=wrong(q, k, v, grid)))
    phi = Handed("squared_features")
    q, k, v = make.qkv(EVEN)
    checks.append(Values(name, "feature_map", "another feature map handed over", [q, k, v, EVEN],
                         dict(feature_map=phi), grid=EVEN, expect=lambda q=q, k=k,
                         v=v: oracles.linearly(phi(q), phi(k), v),
                         mistakes=[("the option feature_map is ignored",
                         partial(ask, q, k, v, EVEN))]))
    gates = Handed("gates_by_hand")

    def gated(q, k, v, grid, gates, feature_map=None):
        phi = feature_map or oracles.features
        a, b = phi(q), phi(k)
        g_q, g_k = gates(a, b, v)
        return oracles.linearly(g_q * a, g_k * b, v)

    q2, k2, v2 = make.qkv(EVEN, 1)
    f = oracles.features
    g_q, g_k = gates(f(q2), f(k2), v2)
    r_q, r_k = gates(q2, k2, v2)
    lin = oracles.linearly
    more = [("the gates are ignored", lambda: ask(q2, k2, v2, EVEN)),
            ("the gates read q and k before phi", lambda: lin(r_q * f(q2), r_k * f(k2), v2)),
            ("the gates multiply q and k before phi", lambda: lin(f(r_q * q2), f(r_k * k2), v2)),
            ("the gates of the features multiply q and k before phi",
            lambda: lin(f(g_q * q2), f(g_k * k2), v2)),
            ("the second gate is dropped", lambda: lin(g_q * f(q2), f(k2), v2)),
            ("the first gate is dropped", lambda: lin(f(q2), g_k * f(k2), v2)),
            ("the first gate is used for both", lambda: lin(g_q * f(q2), g_q * f(k2), v2)),
            ("the second gate is used for both", lambda: lin(g_k * f(q2), g_k * f(k2), v2)),
            ("the two gates are swapped", lambda: lin(g_k * f(q2), g_q * f(k2), v2)),
            ("the gates are added, not multiplied", lambda: lin(g_q + f(q2), g_k + f(k2), v2)),
            ("the values are gated as well", lambda: lin(g_q * f(q2), g_k * f(k2), g_k * v2))]
    checks.append(Values(name, "gates", "gates handed over", [q2, k2, v2, EVEN], dict(gates=gates),
        grid=EVEN,
                         expect=lambda: gated(q2, k2, v2, EVEN, gates), mistakes=more))
    q3, k3, v3 = make.qkv(EVEN)
    checks.append(Values(name, "gates", "gates and a feature map handed over", [q3, k3, v3, EVEN],
                         dict(gates=gates, feature_map=phi), grid=EVEN,
                         expect=lambda: gated(q3, k3, v3, EVEN, gates, phi)))
    for part, C in (("class tokens", 1), ("gradients", 0)):
        q, k, v = make.qkv(EVEN, C)
        checks.append(Gradients(name, part, kind_of(C, EVEN), [q, k, v, EVEN], grid=EVEN, form=ask,
                                weight=make(*q.shape)))
    checks.append(Gradients(name, "gradients", "with gates", [q, k, v, EVEN], dict(gates=gates),
                            grid=EVEN, form=gated, weight=make(*q.shape)))
    for grid in ((6, 6, 8), (1, 2, 3)):
        qkv = make.qkv(grid, heads=2, clips=1, width=32)
        checks.append(priced(name, qkv, grid, "min(2*N*d*D, 2*N**2*D) + N*D"))
    q, k, v = make.qkv((6, 6, 8))
    checks.append(Half(name, "precision", "288 tokens, tens in size", [q, k, v, (6, 6, 8)],
        expect=ask, times=10.0))
    return checks


def fixation_gate(make):
    checks = []
    for part, n in (("values", 3), ("values", 3), ("reads", 1), ("reads", 2)):
        read = [make(B, h, 11, d) for _ in range(n)]
        layer = make.layer(n * d, d)
        joined = torch.cat(read, dim=-1)
        wrong = [("there is no sigmoid", lambda layer=layer, joined=joined: layer(joined)),
                 ("tanh is taken, not the sigmoid", lambda layer=layer,
                 joined=joined: layer(joined).tanh()),
                 ("a softmax is taken, not the sigmoid", lambda layer=layer,
                 joined=joined: layer(joined).softmax(-1)),
                 ("what is read is joined in the reverse order", lambda layer=layer,
                 read=read: layer(
                     torch.cat(read[::-1], dim=-1)).sigmoid()),
                 ("the features are multiplied by the gate; the gate alone is asked for",
                  lambda layer=layer, joined=joined, read=read: layer(joined).sigmoid() * read[0]),
                 ("the sigmoid comes before the layer", lambda layer=layer,
                 joined=joined: layer(joined.sigmoid()))]
        checks.append(Values("fixation_gate", part, f"a layer that reads {n} of them",
            [layer, *read],
                             expect=lambda layer=layer, joined=joined: layer(joined).sigmoid(),
                             mistakes=wrong))
    read = [make(B, h, 11, d) for _ in range(3)]
    form = lambda layer, *read: layer(torch.cat(read, dim=-1)).sigmoid()
    checks.append(Gradients("fixation_gate", "gradients", "", [make.layer(3 * d, d), *read],
        form=form,
                            leaves=("q", "k", "v"), which=(1, 2, 3), weight=make(B, h, 11, d)))
    return checks


# ==== 8. NEIGHBOURS ===========================================================================

NEIGHBOURS = "shift_from_neighbours"
shift_one = oracles.shift_to_neighbours
AROUND = [(0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1), (0, -1, -1), (0, 1, 1), (0, -1, 1),
    (0, 1, -1)]


def shift_from_neighbours(make):
    checks = []
    cases = [("values", [(1, 0, 0), (-1, 0, 0)], 4), ("rows and columns", AROUND[:4], 3),
             ("rows and columns", [(0, 0, 2), (-2, 0, 0), (0, -1, 0)], 5), ("corners", AROUND, 2),
             ("corners", [(1, -1, 0), (1, 1, 1), (-1, 0, 2)], 3),
             ("beyond", [(9, 0, 0), (0, -5, 0), (0, 7, 7)], 4),
             ("share", [(1, 0, 0), (-1, 0, 0)], 9), ("share", [(0, 1, 0)], 0), ("share", [], 3)]
    for part, steps, share in cases:
        grid = (4, 3, 5) if part != "values" else (5, 2, 4)
        x = make(B, h, math.prod(grid), d)
        ask = partial(oracles.shift_to_neighbours, x, grid, steps, share)
        per_head = lambda x=x, grid=grid, steps=steps, share=share: torch.cat([shift_one(
            one, grid, steps, share // h) for one in x.split(1, dim=1)], dim=1)
        channel_first = lambda x=x, grid=grid, steps=steps, share=share: shift_one(
            x.transpose(1, 3), grid, steps, share).transpose(1, 3)
        wrong = [("the rule for diagonals is missing: beyond the border a patch keeps its own",
                  partial(ask, corners="zeros")),
                 ("patches at the border keep their own in all steps; only diagonal ones do",
                 partial(ask, edges="own")),
                 ("own and zeros are swapped between diagonal and straight steps", partial(
                     ask, corners="zeros", edges="own")),
                 ("it wraps round at the border", partial(ask, edges="wrap", corners="wrap")),
                 ("it wraps round at the border in straight steps", partial(ask, edges="wrap")),
                 ("the steps go the wrong way: the patch at the position minus the step gives",
                 partial(ask, sign=-1)),
                 ("rows and columns of the steps are swapped",
                 partial(ask, swap=lambda s: (s[0], s[2], s[1]))),
                 ("rows and columns of the steps are ignored",
                 partial(ask, swap=lambda s: (s[0], 0, 0))),
                 ("the frames of the steps are ignored",
                 partial(ask, swap=lambda s: (0, s[1], s[2]))),
                 ("the channels of each head are shared out by themselves, not those of all heads "
                  "joined", per_head),
                 ("heads and channels are joined as (d h), not (h d)", channel_first),
                 ("all steps take the same channels, the first",
                 partial(ask_same_channels, x, grid, steps, share)),
                 ("nothing is moved", lambda x=x: x)]
        checks.append(Values(NEIGHBOURS, part, f"steps={steps}, share={share}",
            [x, grid, steps, share], grid=grid,
                             expect=ask, mistakes=wrong))
    grid = (3, 2, 4)
    x = make(B, h, 24, d)
    checks.append(Gradients(NEIGHBOURS, "gradients", "", [x, grid, AROUND, 2], grid=grid,
        leaves=("x",), which=(0,),
                            form=oracles.shift_to_neighbours, weight=make(*x.shape)))
    checks.append(Refuses(NEIGHBOURS, "errors", f"3 steps of 7 in {D} channels",
        [x, grid, AROUND[:3], 7],
                          shows=(7,), grid=grid))
    return checks


def ask_same_channels(x, grid, steps, share):
    out = x
    for step in steps:
        out = oracles.shift_to_neighbours(x, grid, [step], share)
    return out


# ==== 9. TRAJECTORY ===========================================================================


def attend_per_frame(make):
    checks, name = [], "attend_per_frame"
    for part, T, S, I in [("values", 4, 6, 24), ("values", 5, 3, 7), ("odd grids", 1, 8, 8),
        ("odd grids", 5, 1, 5)]:
        q, k, v = make(B, h, I, d), make(B, h, T * S, d), make(B, h, T * S, d)
        swapped = lambda q=q, k=k, v=v, T=T, S=S: oracles.per_frame(q, *(
            x.unflatten(2, (S, T)).transpose(2, 3).flatten(2, 3) for x in (k, v)), T)
        wrong = [("the softmax runs over all frames at once, not inside each",
                  partial(oracles.per_frame, q, k, v, T, at_once=True)),
                 ("the mean over all frames is repeated", lambda q=q, k=k, v=v,
                 T=T: oracles.softmax(
                     q, k, v).unsqueeze(3).expand(-1, -1, -1, T, -1)),
                 ("keys are read in the order (S T), not (T S)", swapped),
                 *with_softmax(oracles.per_frame, q, k, v, T)]
        checks.append(Values(name, part, f"T={T}, {S} patches a frame, {I} queries", [q, k, v, T],
                             expect=partial(oracles.per_frame, q, k, v, T), mistakes=wrong))
    q, k, v = make(B, h, 7, d), make(B, h, 12, d), make(B, h, 12, d)
    how = Handed("attend_to_the_first")
    checks.append(Values(name, "attention", "another attention function handed over", [q, k, v, 4],
                         dict(attention=how), expect=partial(oracles.per_frame, q, k, v, 4,
                         how=how),
                         mistakes=[("the function handed over as `attention` is ignored",
                                    partial(oracles.per_frame, q, k, v, 4))]))
    checks.append(Gradients(name, "gradients", "", [q, k, v, 4], form=oracles.per_frame,
        weight=make(B, h, 7, 4, d)))
    q, k, v = make(1, 2, 60, 16), make(1, 2, 96, 16), make(1, 2, 96, 16)
    checks.append(Price(name, "price", "", [q, k, v, 6], formula="2*I*T*S*D",
        allowed=2 * 60 * 96 * 32,
                        spare=4 * 60 * 6 * 32))
    q, k, v = make(B, h, 7, d), make(B, h, 12, d), make(B, h, 12, d)
    checks.append(Refuses(name, "errors", "12 keys and 8 values", [q, k, v[:, :, :8], 4],
        shows=(12, 8)))
    return checks


def wrong_second_stage(ask, d=d, D=D):
    return [
        ("the query is the token of the first frame, not that of the patch's own frame", partial(
            ask, own=lambda n, N, T: 0)),
        ("the query is the token of the last frame, not that of the patch's own frame", partial(
            ask, own=lambda n, N, T: T - 1)),
        ("the patch's own frame is read off as n % T, as if tokens were ordered (S T)", partial(
            ask, own=lambda n, N, T: n % T)),
        ("the value is y~ itself, without W_v", partial(ask, values=False)),
        ("the scale of the second stage is missing", partial(ask, scale=d**0.5)),
        ("the second stage is scaled by 1/sqrt(D), the width of all heads, not 1/sqrt(d)",
        partial(ask, width=D)),
        ("heads are joined as (d h), not (h d)", partial(ask, joined="d h")),
        ("W_k and W_v are swapped", partial(ask, swap=True)),
    ]


def attend_along_trajectories(make):
    checks, name = [], "attend_along_trajectories"
    for part, T, S, layers in [("values", 4, 3, None), ("values", 3, 5, None),
        ("layers", 4, 3, "no bias"),
                               ("layers", 4, 3, "any"), ("odd grids", 1, 5, None),
                               ("odd grids", 5, 1, None)]:
        y = make(B, h, T * S, T, d)
        proj_q, proj_kv = make.layer(D, D, layers is None), make.layer(D, 2 * D, layers is None)
        if layers == "any":
            proj_q, proj_kv = Handed("layer_by_hand"), Handed("two_layers_by_hand")
        ask = lambda y=y, a=proj_q, b=proj_kv, **knobs: oracles.along(y, a, b, **knobs)[0]
        wrong = wrong_second_stage(ask)
        wrong += [("W_q is left out of the second stage", partial(ask, a=lambda x: x)),
                  ("there is no softmax over the trajectory: it is the mean of the values", partial(
                      ask, a=lambda x: 0 * x)),
                  ("the second stage is missing: the token of the own frame comes back",
                   lambda y=y, S=S: torch.stack([y[:, :, n, n // S] for n in range(y.shape[2])],
                   dim=2))]
        if isinstance(proj_kv, type(make.layer(1, 1))) and proj_kv.bias is not None:
            cut = lambda x, b=proj_kv: b(x) - torch.cat([0 * b.bias[:D], b.bias[D:]])
            wrong.append(("the bias of W_v is forgotten", partial(ask, b=cut)))
        label = {"no bias": "layers without bias", "any": "projections that are no nn.Linear"}.get(
            layers, f"{T} frames of {S} patches")
        checks.append(Values(name, part, label, [y, proj_q, proj_kv], expect=ask, mistakes=wrong,
            seconds=60.0))
    y, proj_q, proj_kv = make(B, h, 12, 4, d), make.layer(D, D), make.layer(D, 2 * D)
    checks.append(Values(name, "weights", "return_weights=True", [y, proj_q, proj_kv],
        dict(return_weights=True),
                         pick=pick_weights, expect=lambda y=y: oracles.along(y, proj_q,
                         proj_kv)[1]))
    checks.append(Values(name, "weights", "return_weights=True", [y, proj_q, proj_kv],
        dict(return_weights=True),
                         pick=lambda pair: pair[0],
                         expect=lambda y=y: oracles.along(y, proj_q, proj_kv)[0]))
    checks.append(Gradients(name, "gradients", "", [y, proj_q, proj_kv], leaves=("y",), which=(0,),
                            form=lambda *x: oracles.along(*x)[0], weight=make(B, h, 12, d)))
    T, S, wide = 6, 8, 32
    y = make(1, 2, T * S, T, 16)
    allowed = T * S * wide**2 + 2 * T * S * T * wide**2 + 2 * T * S * T * wide
    checks.append(Price(name, "price", "", [y, make.layer(wide, wide), make.layer(wide, 2 * wide)],
        allowed=allowed,
                        formula="T*S*D**2 + 2*T*S*T*D**2 + 2*T*S*T*D", spare=4 * y.numel()))
    return checks


def pick_weights(pair):
    """The weights (B, h, T*S, 1, T), or without the axis of one."""
    weights = pair[1]
    return weights.unsqueeze(3) if isinstance(weights,
        torch.Tensor) and weights.ndim == 4 else weights


def trajectory_attention(make):
    checks, name = [], "trajectory_attention"
    for part, grid, C in [("values", EVEN, 0), ("values", (4, 3, 2), 0),
        ("class tokens", (4, 3, 2), 1), ("class tokens", (4, 3, 2), 4),
                          ("odd grids", (5, 1, 1), 0), ("odd grids", (1, 3, 5), 0),
                          ("odd grids", (1, 1, 1), 0)]:
        q, k, v = make.qkv(grid, C)
        proj_q, proj_kv = make.layer(D, D), make.layer(D, 2 * D)
        ask = lambda q=q, k=k, v=v, g=grid, a=proj_q, b=proj_kv, **knobs: oracles.trajectory(q, k,
            v, g, a, b, **knobs)
        wrong = [("the first softmax runs over all frames at once, not inside each",
            partial(ask, at_once=True)),
                 ("the query of the second stage is q, not the token of the own frame",
                  partial(query_itself, q, k, v, grid, proj_q, proj_kv)),
                 ("there is no second stage: the mean of the trajectory comes back", partial(
                     ask, second=lambda y, a, b: y.mean(3))),
                 ("the first stage is missing: it is exact attention",
                 partial(oracles.softmax, q, k, v)),
                 *wrong_second_stage(ask), *with_orders(lambda q, k, v, g,
                 ask=ask: ask(q=q, k=k, v=v, g=g), q, k, v, grid)]
        wrong += [(words, partial(ask, how=how)) for words, how in SOFTMAX]
        if C:
            wrong = [*([("patches attend to the class token in every frame",
                partial(ask, keys="with class token"))]
                   if C == 1 else []),
                     ("the class token attends to the patches only, not to itself",
                     partial(ask, to_all=False)),
                     *[(words, partial(not_asked, lambda q, k, v, g, ask=ask: ask(), q, k, v, grid,
                     by)) for words, by in [
                         ("the class token gets zeros", lambda q, k, v, C: 0.0),
                         ("the class token comes back as its own value", lambda q, k, v,
                         C: v[:, :, :C])]], *wrong]
        checks.append(Values(name, part, kind_of(C, grid), [q, k, v, grid, proj_q, proj_kv],
            grid=grid, expect=ask,
                             mistakes=wrong, seconds=60.0))
    grid = (4, 3, 2)
    q, k, v = make.qkv(grid, 1)
    a, b = make.layer(D, D), make.layer(D, 2 * D)
    right = partial(oracles.trajectory, q, k, v, grid, a, b)
    first, second = Handed("first_stage_by_hand"), Handed("second_stage_by_hand")
    for part, options in [("first_stage", dict(first_stage=first)),
        ("second_stage", dict(second_stage=second))]:
        checks.append(Values(name, part, f"{part} handed over", [q, k, v, grid, a, b], options,
            grid=grid,
                             expect=partial(right, **{part[:-6]: options[part]}),
                             mistakes=[(f"the function handed over as {part} is ignored", right)]))
    for part, C in (("gradients", 0), ("class tokens", 1)):
        q, k, v = make.qkv(grid, C)
        checks.append(Gradients(name, part, kind_of(C, grid), [q, k, v, grid, a, b], grid=grid,
                                form=oracles.trajectory, weight=make(*q.shape)))
    grid = (4, 4, 6)
    layers = [make.layer(32, 32), make.layer(32, 64)]
    cost = "2*(T*S)**2*D + 2*C*(C + T*S)*D + T*S*D**2 + 2*T*S*T*D**2 + 2*T*S*T*D"
    checks.append(priced(name, make.qkv(grid, 1, heads=2, clips=1, width=16), grid, cost, layers))
    q, k, v = make.qkv(EVEN)
    checks.append(Refuses(name, "errors", "71 tokens on a grid of 72",
        [q[:, :, 1:], k[:, :, 1:], v[:, :, 1:],
                          EVEN, a, b], shows=(71,), grid=EVEN))
    return checks


def query_itself(q, k, v, grid, proj_q, proj_kv):
    """Trajectory attention whose second query is W_q q, not W_q of the token that q found in its
    own frame.
    """
    C = q.shape[2] - math.prod(grid)
    y = oracles.per_frame(q[:, :, C:], k[:, :, C:], v[:, :, C:], grid[0])
    joined = q[:, :, C:].transpose(1, 2).flatten(2)
    steps = iter(range(y.shape[2]))
    out = oracles.along(y, lambda x: proj_q(joined[:, next(steps)]), proj_kv)[0]
    class_tokens = oracles.softmax(q[:, :, :C], k, v) if C else q[:, :, :0]
    return torch.cat([class_tokens, out], dim=2)


# ==== 10. MEASURE =============================================================================


def window_costs(make):
    checks = []
    for grid, windows, heads, width in [((6, 2, 3), [0, 1, 2, 5], 2, 8), ((4, 3, 5), [3, 0], 3, 4),
        ((1, 2, 2), [1], 1, 8)]:
        T, S, wide = grid[0], grid[1] * grid[2], heads * width
        frames = lambda w: sum(min(T, t + w + 1) - max(0, t - w) for t in range(T))
        right = torch.tensor([2.0 * frames(w) * S**2 * wide for w in windows], dtype=torch.float64)
        wrong = [("operations are returned; a multiply-accumulate is two of them",
            lambda right=right: 2 * right),
                 ("one head is counted, not all", lambda right=right, heads=heads: right / heads),
                 ("the ends of the clip are not taken into account", lambda S=S, T=T, wide=wide,
                 windows=windows:
                  torch.tensor([2.0 * T * (2 * w + 1) * S**2 * wide for w in windows]).double())]
        checks.append(Numbers("window_costs", "values", f"windows {windows}",
            [grid, windows, heads, width],
                              grid=grid, expect=lambda right=right: right, mistakes=wrong))
    return checks


def prototype_errors(make):
    checks = []
    for grid, C, counts in [((2, 3, 4), 0, [1, 3, 8, 24]), ((3, 2, 3), 1, [5, 2])]:
        for _ in range(50):
            q, k, v = make.qkv(grid, C)
            prototypes = [prototypes_of(torch.cat([q, k], dim=2), P) for P in counts]
            if not any(p is None for p in prototypes):
                break
        exact = oracles.softmax(q, k, v)
        approximations = lambda q=q, k=k, v=v, ps=prototypes: [oracles.orthoformer(q, k, v, None,
            p) for p in ps]

        measure = lambda by, found=approximations: torch.tensor([float(by(x)) for x
            in found()]).double()
        right = partial(measure, lambda x, exact=exact: (x - exact).norm() / exact.norm())
        wrong = [("the error is not divided by the norm of exact attention", partial(
                     measure, lambda x, exact=exact: (x - exact).norm())),
                 ("the error is divided by the norm of the approximation", partial(
                     measure, lambda x, exact=exact: (x - exact).norm() / x.norm())),
                 ("the largest difference is taken, not the norm", partial(
                     measure, lambda x, exact=exact: (x - exact).abs().max())),
                 ("the mean squared difference is taken", partial(
                     measure, lambda x, exact=exact: (x - exact).square().mean()))]
        checks.append(Numbers("prototype_errors", "values", f"{counts} prototypes",
            [q, k, v, grid, counts],
                              grid=grid, expect=right, mistakes=wrong, within=1e-4))
    return checks


def prototypes_of(tokens, P):
    """What orthogonal_prototypes gives, or None if rounding could decide."""
    n = min(3 * P, tokens.shape[2])
    pool = tokens[:, :, torch.linspace(0, tokens.shape[2] - 1, n).round().long()]
    picked = oracles.greedy(pool, P)
    return None if picked is None else pool.gather(2, picked[..., None].expand(-1, -1, -1, d))


FUNCTIONS = [attend, space_attention, time_attention, local_attention, global_attention,
    window_attention, shift,
             mix_frames, mixing_attention, most_orthogonal_subset, orthoformer_attention,
             attend_linearly,
             fixation_gate, linear_attention, shift_from_neighbours, attend_per_frame,
             attend_along_trajectories,
             trajectory_attention, window_costs, prototype_errors]


def asked_again(function, make):
    """The first check of values once more, with other numbers, to be asked last: what was kept from
    a call with the same shapes, or is right for a few calls only, is found out."""
    checks = [check for check in function(make) if type(check) in (Values, Indices)][:1]
    for check in checks:
        check.label = f"{check.label}, asked again with other numbers"
    return checks


def suite(seed):
    """{function: its checks}, with inputs that the seed decides."""
    found = {}
    for i, function in enumerate(FUNCTIONS):
        first, again = Make(seed * 1000 + i), Make(seed * 1000 + 500 + i)
        found[function.__name__] = [*function(first), *asked_again(function, again)]
    return found
