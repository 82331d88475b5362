"""Layer-wise relevance propagation with zennit's rules, for any of the kit's nets."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from zennit.attribution import Gradient
from zennit.composites import EpsilonAlpha2Beta1, EpsilonGammaBox, EpsilonPlusFlat
from zennit.core import Composite
from zennit.layer import Sum

from salkit.checks import check_choice, check_settings
from salkit.methods.base import Cost, Method
from salkit.methods.pairs import Pairs
from salkit.models.passes import pass_by_pass, pass_size

Rules = Literal["epsilon_plus_flat", "epsilon_alpha2_beta1", "epsilon_gamma_box"]


@dataclass(frozen=True)
class LRP(Method):
    """LRP: relevance starts as 1 at the label's logit and is shared out layer by layer down to the pixels, summed over the channels.

    Batch normalisation is merged into the convolutions and the sums of skip connections become layers, so that the rules see them.

    Args:
        rules: zennit's composite; `"epsilon_plus_flat"` (epsilon for linear layers, z+ for convolutions, flat for the first) is the one
            recommended for nets with skip connections. `"epsilon_gamma_box"` takes -3 to 3 for the range of inputs.
        internal_batch_size: pairs a pass.

    Cost: about two forward-backward passes a pair.

    Decided: relevance starts at 1 whatever the logit's value, so that a negative logit does not turn the map upside down.

    Raises:
        ValueError: unknown rules, or a batch size below 1.

    Example:
        >>> LRP().rules
        'epsilon_plus_flat'
    """

    rules: Rules = "epsilon_plus_flat"
    internal_batch_size: int = 16

    def __post_init__(self) -> None:
        check_choice("rules", self.rules, get_args(Rules))
        check_settings(self, counts=("internal_batch_size",))

    def cost(self) -> Cost:
        """About two forward-backward passes a pair: the rules run every layer again."""
        return Cost(forward_backward=2)

    def _attribute(self, pairs: Pairs) -> Tensor:
        inputs, net = pairs.inputs, canonical(pairs.classifier.net)
        classes = torch.tensor(pairs.classes, device=inputs.device)
        with Gradient(net, composite=self._composite(inputs)) as attributor:

            def explain(rows: Tensor) -> Tensor:
                def start(logits: Tensor) -> Tensor:
                    return nn.functional.one_hot(classes[rows], logits.shape[1]).to(logits)

                _, relevance = attributor(inputs[rows].detach().clone(), start)
                return relevance.sum(1)

            size = pass_size(inputs, 1, self.internal_batch_size)
            return pass_by_pass(explain, pairs.names, size, inputs.device, parallel=False)

    def _composite(self, inputs: Tensor) -> Composite:
        if self.rules == "epsilon_plus_flat":
            return EpsilonPlusFlat()
        if self.rules == "epsilon_alpha2_beta1":
            return EpsilonAlpha2Beta1()
        return EpsilonGammaBox(low=torch.full_like(inputs[:1], -3), high=torch.full_like(inputs[:1], 3))


def canonical(net: nn.Module) -> fx.GraphModule:
    """A copy of a net (in eval mode) that computes the same without batch norms after convolutions, its sums being layers of their own.

    Raises:
        TypeError: a net that cannot be traced.
    """
    tracer = _Tracer()
    try:
        graph = tracer.trace(net)
    except Exception as error:
        raise TypeError(f"classifier: expected a net that torch.fx can trace, got {type(net).__name__} ({error})") from error
    traced = fx.GraphModule(tracer.root, graph)
    modules = dict(traced.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in list(graph.nodes):
        before = node.args[0] if node.args else None
        is_norm = node.op == "call_module" and isinstance(modules[node.target], nn.BatchNorm2d)
        if is_norm and isinstance(before, fx.Node) and before.op == "call_module" and len(before.users) == 1:
            conv = modules[str(before.target)]
            # A convolution that runs more than once has one weight for all its norms: it stays as it is.
            if isinstance(conv, nn.Conv2d) and calls[before.target] == 1:
                traced.set_submodule(str(before.target), fuse_conv_bn_eval(conv, modules[node.target]))
                node.replace_all_uses_with(before)
                graph.erase_node(node)
        elif node.op == "call_function" and node.target in (operator.add, operator.iadd, torch.add):
            if not node.kwargs and all(isinstance(a, fx.Node) for a in node.args[:2]):
                name = f"sum_{node.name}"
                traced.add_submodule(name, Sum())
                with graph.inserting_before(node):
                    alike = graph.call_function(torch.broadcast_tensors, node.args[:2])
                    stacked = graph.call_function(torch.stack, (alike,), {"dim": -1})
                    summed = graph.call_module(name, (stacked,))
                node.replace_all_uses_with(summed)
                graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Convolutions and linear layers of other packages stay whole, too: the rules look for them by type."""
        return isinstance(m, (nn.Conv2d, nn.Linear)) or super().is_leaf_module(m, module_qualified_name)
