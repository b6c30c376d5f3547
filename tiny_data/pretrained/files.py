"""Files of weights: what is read, and the one error that lists all that does not fit a model."""

import argparse
import os

import torch


def read_weights(source, files=""):
    """{key: tensor} from a path, or from what the file held, without its nestings. Only tensors are
    read: code in a file is never run. `files` says where a file that is not there can be had."""
    if isinstance(source, (str, os.PathLike)):
        if not os.path.exists(source):
            raise FileNotFoundError(f"no file {source}; {files}")
        source = read_file(os.fspath(source))
    for nesting in 2 * ("model_state", "state_dict", "model", "module"):  # in any order
        if isinstance(source, dict) and isinstance(source.get(nesting), dict):
            source = source[nesting]
    if not isinstance(source, dict) or not source:
        raise ValueError(f"needs a path or a dictionary of tensors, not {source!r}"[:2000])
    refuse("what is read", no_dense_floats=[str(k) for k, x in source.items() if not is_dense(x)])
    dtype = torch.get_default_dtype()
    return {key: x.detach().to("cpu", dtype, copy=True) for key, x in source.items()}


def read_file(path):
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # VideoMAE's files have one
            return torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise ImportError(f"to read {path}: pip install safetensors") from None
    except Exception as error:  # of many kinds, with advice that must not reach a user
        text = f"{path} is cut short, no file of weights, or holds more than tensors"
        raise ValueError(f"{text} ({type(error).__name__})") from None


def is_dense(x):
    dense = torch.is_tensor(x) and x.layout == torch.strided and not x.is_meta
    return dense and x.is_floating_point() and 0 < x.numel() and 0 < x.ndim


def refuse(source, **wrong):
    """One ValueError that lists all that is wrong, if anything is."""
    found = [f"{len(names)} {kind}: {', '.join(names)}" for kind, names in wrong.items() if names]
    if found:
        raise ValueError(f"{source} does not fit; {'; '.join(found)}"[:2000])


def fill(model, weights, source, assign=False):
    """Load the weights, or refuse them all and leave the model as it was."""
    own = {key: tuple(x.shape) for key, x in model.state_dict().items()}
    given = {key: tuple(x.shape) for key, x in weights.items()}
    both = [key for key in own if key in given and own[key] != given[key]]
    refuse(
        source,
        missing=[key for key in own if key not in given],
        unexpected=[key for key in given if key not in own],
        misshapen=[f"{key} {given[key]} for {own[key]}" for key in both],
    )
    model.load_state_dict(weights, assign=assign)
