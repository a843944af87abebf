"""Every family by name, with inputs for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.models import classic, dense, mobile, sequence

Kind = Literal["cnn", "sequence", "transformers"]


@dataclass(frozen=True)
class Family:
    """A model and what it takes: `inputs()` is a tensor, a tuple or a dict, as `tq.prepare` wants it, of a batch of two."""

    name: str
    kind: Kind
    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]


def leaves(output: Any) -> list[Tensor]:
    """The tensors of whatever a model returns."""
    output = output.to_tuple() if hasattr(output, "to_tuple") else output
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def image(side: int = 32) -> Tensor:
    return torch.randn(2, 3, side, side)


def ids(length: int = 9, first: int = 0) -> Tensor:
    return torch.randint(first, 60, (2, length))


_CNN: dict[str, Callable[[], nn.Module]] = {
    "LeNet, tanh": classic.LeNetTanh, "AlexNet": classic.alexnet, "VGG": classic.vgg, "ResNet": classic.resnet,
    "ResNet, bottleneck": classic.resnet_bottleneck, "ResNeXt": classic.resnext,
    "WideResNet, pre-activation": classic.wide_resnet, "DenseNet": classic.DenseNet, "Inception": classic.Inception,
    "SqueezeNet": classic.squeezenet, "RepVGG": classic.RepVgg, "Xception": mobile.Xception,
    "MobileNetV1": mobile.mobilenet_v1,
    "MobileNetV2": mobile.mobilenet_v2, "MobileNetV3": mobile.mobilenet_v3, "EfficientNet": mobile.efficientnet,
    "MNASNet": mobile.mnasnet, "ShuffleNetV2": mobile.shufflenet, "GhostNet": mobile.ghostnet, "RegNet": mobile.regnet,
    "CBAM": mobile.Cbam, "ConvNeXt": mobile.convnext, "HRNet": dense.HighResolution,
    "hourglass": dense.Hourglass, "DeepLab": dense.DeepLab,
    "U-Net": lambda: dense.Unet("transposed"), "U-Net, bilinear": lambda: dense.Unet("bilinear"),
    "super-resolution": dense.SuperResolution, "autoencoder": dense.autoencoder, "YOLO": dense.Yolo,
    "feature pyramid": dense.Pyramid, "arithmetic": dense.Arithmetic, "fully convolutional": dense.fully_convolutional,
    "MLP-Mixer": dense.Mixer,
}  # fmt: skip

_BERT = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37,
    "max_position_embeddings": 64,
}  # fmt: skip
_VIT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
_T5 = {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4, "use_cache": False}
_WHISPER = {
    "vocab_size": 60, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 37, "decoder_ffn_dim": 37, "num_mel_bins": 16, "max_source_positions": 20,
    "max_target_positions": 20, "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1,
}  # fmt: skip
_WAV = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37, "conv_dim": (16, 16),
    "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0, "layerdrop": 0.0,
}  # fmt: skip
_SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
_SEGFORMER = {
    "num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [16, 32], "num_attention_heads": [1, 2], "sr_ratios": [2, 1],
    "patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [2, 2],
}  # fmt: skip
_CONVNEXT = {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "num_stages": 4}
_MOBILEVIT = {
    "image_size": 32, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32], "num_attention_heads": 4,
}  # fmt: skip
_CLIP = {"text_config": _BERT | {"eos_token_id": 59}, "vision_config": _VIT, "projection_dim": 16}
_GPT2 = {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "use_cache": False}
_LLAMA = _BERT | {"num_key_value_heads": 2, "use_cache": False}
_DISTIL = {"vocab_size": 60, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 37}

_TEXT: Callable[[], Any] = lambda: {"input_ids": ids(first=3)}  # noqa: E731
_PIXELS: Callable[[], Any] = lambda: {"pixel_values": image()}  # noqa: E731

_PACKAGE: dict[str, tuple[str, dict[str, Any], Callable[[], Any]]] = {
    "BERT": ("Bert", _BERT, lambda: {"input_ids": ids(), "attention_mask": torch.ones(2, 9, dtype=torch.long)}),
    "DistilBERT": ("DistilBert", _DISTIL, _TEXT),
    "RoBERTa": ("Roberta", _BERT, _TEXT),
    "ALBERT": ("Albert", _BERT | {"embedding_size": 16}, _TEXT),
    "ELECTRA": ("Electra", _BERT | {"embedding_size": 16}, _TEXT),
    "ViT": ("ViT", _VIT, _PIXELS),
    "DeiT": ("DeiT", _VIT, _PIXELS),
    "Swin": ("Swin", _SWIN, _PIXELS),
    "ConvNeXtV2": ("ConvNextV2", _CONVNEXT, _PIXELS),
    "SegFormer": ("Segformer", _SEGFORMER, _PIXELS),
    "MobileViT": ("MobileViT", _MOBILEVIT, lambda: {"pixel_values": image(64)}),
    "GPT-2": ("GPT2", _GPT2, _TEXT),
    "Llama": ("Llama", _LLAMA, _TEXT),
    "Qwen2": ("Qwen2", _LLAMA, _TEXT),
    "T5": ("T5", _T5, lambda: {"input_ids": ids(), "decoder_input_ids": ids(7)}),
    "Whisper": ("Whisper", _WHISPER, lambda: {"input_features": torch.randn(2, 16, 40), "decoder_input_ids": ids(7)}),
    "CLIP": ("CLIP", _CLIP, lambda: {"input_ids": ids(first=3), "pixel_values": image()}),
    "wav2vec2": ("Wav2Vec2", _WAV, lambda: {"input_values": torch.randn(2, 800)}),
}


def _from_package(name: str, options: dict[str, Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        model: nn.Module = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**options))
        return model

    return make


def _families() -> list[Family]:
    found = [Family(name, "cnn", make, image) for name, make in _CNN.items()]
    found += [
        Family("temporal convolutions", "cnn", dense.Temporal, lambda: torch.randn(2, 4, 16)),
        Family("video", "cnn", dense.video, lambda: torch.randn(2, 3, 4, 12, 12)),
        Family("siamese", "cnn", dense.Siamese, lambda: (image(), image())),
        Family("text CNN", "sequence", sequence.TextCnn, ids),
        Family("LSTM", "sequence", lambda: sequence.Recurrent(nn.LSTM, 2, False), ids),
        Family("GRU, both ways", "sequence", lambda: sequence.Recurrent(nn.GRU, 1, True), ids),
        Family("attention by hand", "sequence", sequence.Attention, ids),
        Family(
            "multi-head attention", "sequence", sequence.MultiHead,
            lambda: (torch.randn(2, 6, 8), torch.arange(6).expand(2, -1) > torch.tensor([[3], [5]])),
        ),
        Family("Transformer encoder", "sequence", sequence.Encoder, ids),
        Family("Transformer", "sequence", sequence.Translator, lambda: (ids(), ids(7))),
        Family("vision Transformer", "sequence", sequence.VisionTransformer, image),
    ]  # fmt: skip
    if find_spec("transformers") is not None:
        found += [
            Family(f"transformers: {title}", "transformers", _from_package(name, options), inputs)
            for title, (name, options, inputs) in _PACKAGE.items()
        ]
    return found


FAMILIES: dict[str, Family] = {family.name: family for family in _families()}
