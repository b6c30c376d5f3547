"""The table of the course. To change a question edit it here, and its paragraph in sheet.md."""

import math
from dataclasses import dataclass

from .cases import CLIPS, CUTS, GRIDS, boxes, crossed, hand, layer, mechanism, of_clip


@dataclass(eq=False)
class Function:
    name: str
    points: float  # four to an hour of work
    parts: dict  # part -> percent of the points
    cases: callable  # draw -> cases


@dataclass(eq=False)
class Question:
    number: int
    title: str
    functions: list

    @property
    def points(self):
        return sum(f.points for f in self.functions)


def ask(name, points, shares, *cases):
    parts = {part: int(n) for part, n in (share.rsplit(" ", 1) for share in shares.split(", "))}
    return Function(name, points, parts, lambda draw: [x for some in cases for x in some(draw)])


def qkv(draw, lead, I, J):
    return draw(*lead, I, 6), draw(*lead, J, 6), draw(*lead, J, 4)


def leading(lead, I, J):
    return {"leading axes": len(lead) != 2 or 1 in (*lead, I, J)}


def features(draw, lead, I, J, silent=0):
    q, k, v = (x.abs() for x in qkv(draw, lead, I, J))
    q[..., :silent, :] = 0
    return q, k, -v


def vectors(draw, lead, n, d, count, power=0):
    return draw(*lead, n, d) * draw(n, 1).exp() ** power, count


def with_boxes(cut, **options):
    return mechanism(lambda draw, B, h, d, grid: (boxes(cut, grid),), **options)


# fmt: off
LEADING = [((2, 3), 11, 13), ((2, 3), 17, 9), ((), 6, 9), ((4,), 5, 7), ((2, 1, 3), 5, 4),
           ((2, 1, 2, 2), 3, 5), ((1, 1), 1, 1), ((1, 3), 1, 4), ((2, 2), 4, 1)]  # ..., I, J
PATHS = [(2, 3, 4, 5, 4), (1, 2, 3, 7, 6), (2, 2, 1, 3, 4), (1, 2, 3, 1, 4), (2, 1, 2, 3, 4),
         (1, 1, 1, 1, 2)]  # B, h, T, S, d
KINDS = ["layer", "layer without bias", "function"]
LARGE = ((2, 3), 60, 60), (12, 1)  # tried in half precision too, the first time with large scores
attention = [hand("attention")]

QUESTIONS = [
    Question(1, "Softmax attention", [
        ask("attend", 2, "values 40, causal 20, leading axes 15, gradients 10, price 5, "
            "precision 10", crossed(qkv, LEADING, leading),
            crossed(qkv, [(lead, I, I) for lead, I, _ in LEADING], leading, *LARGE, causal=[True])),
        ask("attention_weights", 2, "values 50, leading axes 20, gradients 15, price 5, "
            "precision 10", crossed(lambda *x: qkv(*x)[:2], LEADING, leading, *LARGE))]),
    Question(2, "Divided attention", [
        ask("space_attention", 3, "values 40, class tokens 20, odd grids 10, attention 10, "
            "gradients 10, price 5, precision 5", mechanism(attention=attention)),
        ask("time_attention", 4, "values 35, class tokens 10, odd grids 5, attention 10, "
            "causal 15, class_key 10, gradients 5, price 5, precision 5",
            mechanism(attention=attention, causal=[True]), mechanism(class_key=[True]),
            mechanism(clips=[(GRIDS[1], 0)], attention=attention, class_key=[True]))]),
    Question(3, "Boxes", [
        ask("cut", 2, "values 50, first 30, short 20",
            crossed(None, [(6, 2, 2), (7, 3, 3), (8, 4, 4), (9, 2, 2)]),
            crossed(None, [(3, 3, 3), (2, 5, 5), (1, 1, 1), (3, 4, 2), (4, 4, 2)], also=["short"]),
            crossed(None, [(8, 4, 2), (7, 3, 1), (9, 5, 2), (6, 2, 1)], also=["first"])),
        ask("tokens_of_boxes", 2, "values 60, class tokens 20, odd grids 20",
            crossed(lambda draw, grid, C, cut: (grid, boxes(cut, grid), C),
                    [(*clip, cut) for clip in CLIPS for cut in CUTS], of_clip)),
        ask("attend_in_boxes", 4, "values 40, sizes 15, class tokens 15, odd grids 10, "
            "gradients 10, price 5, precision 5",
            with_boxes("halves"), with_boxes("lattices"), with_boxes("sizes", also=["sizes"]))]),
    Question(4, "Windows in time", [
        ask("window_attention", 8, "values 30, window 15, causal 20, class tokens 15, odd grids 5, "
            "gradients 5, price 5, precision 5", mechanism(window=[0, 2, 3, 9], causal=[True]))]),
    Question(5, "Mixing", [
        ask("mix_frames", 4, "values 40, window 20, moved 15, odd grids 5, gradients 15, "
            "precision 5", crossed(lambda draw, B, T, h, L: (draw(B * T, h, L, 18), T),
                [(2, 5, 3, 4), (1, 4, 2, 6), (3, 1, 2, 1), (1, 1, 1, 3)],
                lambda B, T, *x: {"odd grids": T == 1}, (2, 5, 3, 4),
                window=[0, 2, 3], moved=[1.0, 0.0, 0.8])),
        ask("mixing_attention", 4, "values 40, window 5, moved 5, summary 15, class tokens 15, "
            "odd grids 5, gradients 5, price 5, precision 5",
            mechanism(window=[2], moved=[1.0], summary=[True]))]),
    Question(6, "Orthoformer", [
        ask("most_orthogonal_subset", 4, "values 60, norms 20, count 20",
            crossed(vectors, [((2, 3), 12, 6, n) for n in (1, 2, 5)]),
            crossed(vectors, [((2,), 9, 5, 5, 2)] * 3, also=["norms"]),
            crossed(vectors, [((), 7, 4, 7), ((2, 1), 7, 4, 7), ((2,), 1, 4, 1)], also=["count"])),
        ask("orthoformer_attention", 3, "values 55, class tokens 5, odd grids 5, gradients 15, "
            "price 15, precision 5", mechanism(lambda draw, B, h, d, grid: (draw(B, h, 5, d),)))]),
    Question(7, "Linear attention", [
        ask("attend_linearly", 3, "values 40, eps 10, rotation 10, leading axes 10, gradients 10, "
            "price 10, precision 10",
            crossed(features, LEADING, leading, ((2, 3), 40, 40), (30, 1), eps=[0.5, 0.0],
                    rotation=[hand("rotation")]),
            crossed(lambda *size: features(*size, 1), LEADING, leading, also=["eps"], eps=[0.5])),
        ask("relu_features", 1, "values 65, odd grids 10, gradients 20, precision 5",
            crossed(lambda draw, *shape: (draw(*shape),),
                    [(2, 3, 7, 4), (3, 2, 5, 9), (1, 1, 1, 6), (5, 2)],
                    lambda *shape: {"odd grids": len(shape) < 4 or 1 in shape}, (2, 3, 7, 4))),
        ask("linear_attention", 1, "values 55, class tokens 10, odd grids 10, gradients 10, "
            "price 10, precision 5", mechanism()),
        ask("fixation_gate", 2, "values 45, layers 20, odd grids 10, gradients 20, precision 5",
            crossed(lambda draw, B, h, N, x: (layer(draw, x, 4, 12), *draw(3, B, h, N, 4)),
            [(*x, kind) for x in ((2, 3, 7), (1, 1, 1), (3, 1, 4)) for kind in KINDS],
            lambda *x: {"layers": x[3] != "layer", "odd grids": x[1] == 1}, (2, 3, 7, "layer")))]),
    Question(8, "Rotary positions", [
        ask("rotate", 6, "values 45, base 15, widths 10, class tokens 15, odd grids 5, "
            "gradients 5, precision 5", crossed(
                lambda draw, grid, C, d: (draw(*grid[1:], C + math.prod(grid), d), grid),
                [(*clip, d) for clip in CLIPS for d in (12, 18, 16, 10, 6)],
                lambda grid, C, d: of_clip(grid, C) | {"widths": d % 6 > 0}, (GRIDS[0], 1, 12),
                base=[100.0, 7]))]),
    Question(9, "Trajectories", [
        ask("attend_per_frame", 3, "values 45, attention 15, odd grids 10, gradients 10, price 15, "
            "precision 5", crossed(
                lambda draw, B, h, I, T, S: (*(draw(B, h, n, 8) for n in (I, T * S, T * S)), T),
                [(2, 3, 7, 4, 5), (2, 3, 20, 4, 5), (1, 2, 1, 3, 1), (2, 1, 5, 1, 6), (1,) * 5],
                lambda *size: {"odd grids": 1 in size}, (2, 3, 20, 4, 5), attention=attention)),
        ask("own_frame", 2, "values 65, odd grids 15, gradients 15, precision 5",
            crossed(lambda draw, B, h, T, S, d: (draw(B, h, T * S, T, d),), PATHS,
                    lambda *size: {"odd grids": 1 in size[1:4]}, PATHS[0])),
        ask("attend_along_trajectories", 4, "values 45, layers 15, odd grids 10, gradients 15, "
            "price 10, precision 5", crossed(
                lambda draw, B, h, T, S, d, kind: (
                    draw(B, h, T * S, T, d),
                    *(layer(draw, kind, n * h * d, h * d) for n in (1, 2))),
                [(*x, kind) for x in PATHS for kind in KINDS], half=(*PATHS[0], "layer"),
                tags=lambda *x: {"layers": x[-1] != "layer", "odd grids": 1 in x[1:4]})),
        ask("trajectory_attention", 3, "values 50, class tokens 25, odd grids 5, gradients 10, "
            "price 5, precision 5", mechanism(lambda draw, B, h, d, grid: (
                hand("first stage"), hand("second stage", draw(d, d)))))]),
    Question(10, "Measure", [
        ask("window_costs", 2, "values 40, mechanism 60",
            crossed(None, [((3, 2, 4), [0, 1, 2], 2, 6), ((6, 3, 2), [1, 4, 9], 3, 10)],
                    mechanism=[hand("mechanism")])),
        ask("prototype_errors", 1, "values 60, choose 40",
            crossed(lambda draw, N, *grid: (*(draw(2, 3, N, 8) for _ in "qkv"), grid, [1, 4, 9]),
                    [(24, 2, 3, 4), (13, 3, 2, 2)], choose=[hand("choice")]))]),
]
# fmt: on

# What would answer a question elsewhere in the file, and is left out of the handout too.
ANSWERS_ELSEWHERE = """summary_attention performer_per_frame orthoformer_per_frame nystrom_per_frame
attend_along_trajectories_fast weights_along_trajectories attend_features""".split()


def chosen(words):
    """The questions of words such as 3 or 2-4; all without words."""
    ranges = [word.partition("-") for word in words]
    numbers = {n for first, _, last in ranges for n in range(int(first), int(last or first) + 1)}
    return [q for q in QUESTIONS if q.number in numbers or not words]
