"""The main job: a float model on MNIST becomes an Int8 model that computes what was validated."""

from truequant.demo.mnist import Mnist, load_mnist
from truequant.demo.models import MODELS, lenet, mlp, mobilenet, resnet
from truequant.demo.training import Recipe, accuracy, fit

__all__ = ["MODELS", "Mnist", "Recipe", "accuracy", "fit", "lenet", "load_mnist", "mlp", "mobilenet", "resnet"]
