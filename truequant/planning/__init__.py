"""Decisions: capture of a forward, and the plan made from it."""

from truequant.planning.actions import FLOAT
from truequant.planning.algorithms import check_dynamic
from truequant.planning.attention import HIDES, attention_arguments
from truequant.planning.batch_norms import norm_arguments
from truequant.planning.batches import Takes, arguments_of, inputs_of, items_of, takes_of
from truequant.planning.calls import arguments_in, as_arguments, as_example, call_in, call_of, positional_in
from truequant.planning.codec import config_from_json, config_to_json, scheme_from_json, scheme_to_json
from truequant.planning.constants import Constants
from truequant.planning.decide import plan
from truequant.planning.decomposed import FAST_PATHS, decomposed
from truequant.planning.fitting import check_modules, check_plain
from truequant.planning.formulas import Affine
from truequant.planning.masks import masks_held
from truequant.planning.norm_rules import NORM_OPS, norm_operands
from truequant.planning.ops import (
    LINEAR_OPS,
    Op,
    Role,
    clamp_bounds,
    counted_as,
    has_op,
    is_loss,
    op_named,
    op_of,
    out_of_place,
    tensors_in,
    writes_in_place,
)
from truequant.planning.outputs import tensors_of
from truequant.planning.plan import Plan, check_plan, plan_from_json, plan_to_json, rule_of
from truequant.planning.products import contraction
from truequant.planning.records import OwnerPlan, QuantizerPlan, Site, TensorSpec
from truequant.planning.resizing import linear_factors, phase_weights, whole
from truequant.planning.structures import build, is_tree, mapped, named_leaves, names_in, renamed, tree_of
from truequant.planning.table import where_to
from truequant.planning.user_ops import RegisteredOp, decode_call, encode_call, register_op, registered_op, renumbered
from truequant.planning.widths import WIDE_BITS, is_wide_stream, of_width

__all__ = [
    "FAST_PATHS", "FLOAT", "HIDES", "LINEAR_OPS", "NORM_OPS", "WIDE_BITS", "Affine", "Constants", "Op", "OwnerPlan", "Plan",
    "QuantizerPlan", "RegisteredOp", "Role", "Site", "Takes", "TensorSpec", "arguments_in", "arguments_of", "as_arguments",
    "as_example", "attention_arguments", "build", "call_in", "call_of", "check_dynamic", "check_modules",
    "check_plain", "check_plan", "clamp_bounds", "config_from_json", "config_to_json", "contraction", "counted_as",
    "decode_call", "decomposed", "encode_call", "has_op", "inputs_of", "is_loss", "is_tree", "is_wide_stream", "items_of",
    "linear_factors", "mapped", "masks_held", "named_leaves", "names_in", "norm_arguments", "norm_operands", "of_width",
    "op_named", "op_of", "out_of_place", "phase_weights", "plain", "plan", "plan_from_json", "plan_to_json", "positional_in",
    "register_op", "registered_op", "renamed", "renumbered", "rule_of", "scheme_from_json", "scheme_to_json", "takes_of",
    "tensors_in", "tensors_of", "tree_of", "where_to", "whole", "writes_in_place",
]  # fmt: skip
