"""Uses moekit without one package in a process of its own each, and prints the messages where that package is needed.

Run by ``test_import.py``. Its argument is a json object: by the name of each package, the code that needs it.
"""

import json
import os
import sys
import tempfile
import traceback

import torch


class Without:
    """Finds all modules but those of a package."""

    def __init__(self, finder, package):
        self.finder, self.package = finder, package

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] == self.package else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)


def checkpoint():
    """Reads a safetensors file."""
    from moekit.inspect.checkpoint import inspect_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.safetensors"
        open(path, "wb").close()
        inspect_checkpoint(path)


def xformers():
    """Computes attention by xFormers."""
    from moekit import xformers_attention

    q = torch.randn(1, 1, 2, 4)
    xformers_attention(q, q, q, mask=None, dropout_p=0.0, scale=1.0)


def translations():
    """Makes the table of translations to ONNX."""
    from moekit.interop.onnx import translation_table

    translation_table()


def trained_and_recorded():
    """Imports everything, trains and records a layer, and returns the record."""
    import moekit.activations
    import moekit.inspect
    import moekit.interop
    import moekit.interop.onnx
    import moekit.lora

    layer = moekit.SparseMoE.ffn(8, 6, 4, 2)
    with moekit.inspect.record_routing(layer) as record:
        output, stats = layer(torch.randn(5, 8))
    output.sum().backward()
    assert output.isfinite().all()
    assert stats.tokens_per_expert.sum() == 10
    assert len(record.layers) == 1
    return record


def run(package, codes):
    """Runs everything without a package, then the codes that need it."""
    assert package not in sys.modules
    sys.meta_path[:] = [Without(finder, package) for finder in sys.meta_path]
    names = {"record": trained_and_recorded(), "torch": torch, "moekit": sys.modules["moekit"]}
    names |= {"checkpoint": checkpoint, "xformers": xformers, "translations": translations}
    assert package not in sys.modules
    for code in codes:
        try:
            exec(code, dict(names))
        except (ImportError, ValueError) as error:
            print(json.dumps([package, code, str(error)]), flush=True)


for package, codes in json.loads(sys.argv[1]).items():
    if package != "triton":  # which it imports; the others' processes start with it, as it takes seconds
        import torch._dynamo
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0, package
        continue
    try:
        run(package, codes)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
