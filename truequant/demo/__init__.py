"""The main job: a float model on MNIST becomes an Int8 model that computes what was validated."""

from truequant.demo.mnist import Mnist, load_mnist
from truequant.demo.models import MODELS, lenet, mlp, mobilenet, resnet
from truequant.demo.pipeline import run_demo
from truequant.demo.result import DemoOptions, DemoResult
from truequant.demo.training import Recipe, accuracy, fit

__all__ = [
    "MODELS", "DemoOptions", "DemoResult", "Mnist", "Recipe", "accuracy", "fit", "lenet", "load_mnist", "mlp", "mobilenet",
    "resnet", "run_demo",
]  # fmt: skip
