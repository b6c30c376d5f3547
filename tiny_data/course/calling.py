"""Calling a function with a case, which is here a dict, and comparing what comes back."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Price(TorchDispatchMode):
    macs = 0  # multiply-accumulates: of matrix products, and products element by element

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            formula = flop_registry[func._overloadpacket]
            self.macs += formula(*args, **(kwargs or {}), out_val=out) / 2
        elif "flash_attention_for_cpu" in func.__name__:
            q, k, v = args[:3]
            self.macs += q.numel() * k.shape[-2] + q[..., 0].numel() * v[0, 0].numel()
        elif func.__name__ == "mul.Tensor" and getattr(args[1], "ndim", 0) > 0:
            self.macs += out.numel()
        return out


def layer(weight, bias=None):
    linear = torch.nn.Linear(*reversed(weight.shape))
    del linear.weight, linear.bias
    linear.weight, linear.bias = weight, bias
    return linear


HANDED = {  # what some questions hand over, made from tensors
    "layer": layer,
    "layer without bias": layer,
    "function": lambda weight: lambda x: x @ weight.T,
    "range": range,
    "attention": lambda: lambda q, k, v, causal=False: (q @ k.mT).sin().tril(99 - 99 * causal) @ v,
    "rotation": lambda: lambda x: x * torch.arange(x.shape[-2], dtype=x.dtype).cos()[:, None],
    "first stage": lambda: lambda q, k, v, T: q.unsqueeze(3) * k[:, :, None, :T] + v.mean(),
    "second stage": lambda weight: lambda y: (y * y.softmax(3)).sum(3) @ weight,
    "mechanism": lambda: lambda q, k, v, grid, window: q @ k.mT[..., : window + 1],
    "choice": lambda: lambda q, k, count: (q + k)[:, :, :count],
}


def handed(x, leaves, derivatives):
    """An argument as the function gets it; tensors that have a derivative are added to `leaves`."""
    if isinstance(x, torch.Tensor):
        leaves.append(x.clone().requires_grad_(derivatives))
        return leaves[-1].clone()
    if isinstance(x, dict) and "handed" in x:
        return HANDED[x["handed"]](*(handed(y, leaves, derivatives) for y in x["with"]))
    if isinstance(x, dict):
        return {name: handed(y, leaves, derivatives) for name, y in x.items()}
    return type(x)(handed(y, leaves, derivatives) for y in x) if type(x) in (list, tuple) else x


def plain(x):
    """What came back as tensors, numbers and lists of them; anything else is a TypeError."""
    if type(x) is torch.Tensor:
        return x.detach()
    if isinstance(x, (list, tuple, range)):
        return [plain(y) for y in x]
    if isinstance(x, (bool, int, float)) or type(x).__module__ == "numpy":
        return x.tolist() if hasattr(x, "tolist") else x
    raise TypeError(f"{type(x).__name__} came back in place of a tensor")


def renamed(function, options, names):
    """Options under the names that the function has for them, if its parameters were renamed."""
    code = getattr(function, "__code__", None)
    own = code.co_varnames[: len(names)] if code and code.co_argcount == len(names) else names
    return {x if x in own else own[names.index(x)]: y for x, y in options.items()}


def answer(function, case):
    leaves, asked = [], case["derivatives"]
    args, options = (handed(case[x], leaves, asked) for x in ("args", "options"))
    before = [(x, x.detach().clone()) for x in args if isinstance(x, torch.Tensor)]
    with Price() as price:
        out = function(*args, **renamed(function, options, case["names"]))
    reply = dict(value=plain(out), macs=price.macs, gradients=None)
    reply["changed"] = not all(torch.equal(x, y) for x, y in before)
    if asked and isinstance(out, torch.Tensor) and out.requires_grad:
        weight = torch.arange(out.numel(), dtype=out.dtype).mul(1.7).cos().view(out.shape)
        found = torch.autograd.grad(out, leaves, weight, allow_unused=True, materialize_grads=True)
        reply["gradients"] = list(found)
    return reply


def as_lists(x):
    x = x.tolist() if isinstance(x, torch.Tensor) else x
    return [as_lists(y) for y in x] if isinstance(x, list) else x


def difference(found, right, tolerance):
    """What is wrong, in words, or nothing. The shape is compared before anything else."""
    if not isinstance(right, torch.Tensor) or not isinstance(found, torch.Tensor):
        found, right = as_lists(found), as_lists(right)
        if found == right:
            return ""
        try:
            found, right = (torch.tensor(x, dtype=torch.float64) for x in (found, right))
        except Exception:
            return f"{str(found)[:200]} came back, right is {str(right)[:200]}"
    if found.shape != right.shape:
        return f"the shape is {tuple(found.shape)}, right is {tuple(right.shape)}"
    error = (found.double() - right.double()).abs()
    if not error.isfinite().all():
        return f"{(~error.isfinite()).sum()} of {error.numel()} numbers are NaN or infinite"
    wrong = error > tolerance * (1 + right.double().abs())
    if tolerance > 1e-3:  # half precision: in the mean
        wrong &= error.norm() > tolerance * right.double().norm()
    return f"{wrong.sum()} of {wrong.numel()} numbers are wrong" if wrong.any() else ""


def wrong_gradients(found, right):
    if not isinstance(found, list) or len(found) != len(right):
        return "no derivative comes back: the result is cut off from its inputs"
    wrong = [n for n in range(len(right)) if difference(found[n], right[n], 1e-8)]
    missing = all(torch.is_tensor(found[n]) and not found[n].any() for n in wrong)
    words = f"the derivative is {'missing' if missing else 'wrong'} for argument "
    return words + ", ".join(str(n + 1) for n in wrong) if wrong else ""


def compare(found, right, case):
    """{"value", "gradients" or "price": what is wrong with it, in words}"""
    wrong = dict(value=difference(found["value"], right["value"], case["tolerance"]))
    types = [x.dtype for x in (found["value"], right["value"]) if torch.is_tensor(x)]
    if types[1:] and types[1].is_floating_point and types[0] != types[1]:
        wrong["value"] = wrong["value"] or f"the result is {types[0]}, the inputs are {types[1]}"
    if found.get("changed"):
        wrong["value"] = wrong["value"] or "the inputs were changed in place: work on copies"
    if right["gradients"] is not None:
        wrong["gradients"] = wrong_gradients(found.get("gradients"), right["gradients"])
    allowed = 1.1 * right["macs"] + 4 * sum(x.numel() for x in case["args"] if torch.is_tensor(x))
    if case["price"] and right["macs"] >= 1000 and found.get("macs", 0) > allowed:
        wrong["price"] = f"{found['macs']:.0f} multiplications, right are {right['macs']:.0f}"
    return {part: words for part, words in wrong.items() if words}
