"""Softmax over many classes of which few are frequent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from disttrain.dtypes import int32, int64
from disttrain.functions.activation import log_softmax
from disttrain.functions.join import cat
from disttrain.nn.container import ModuleList, Sequential
from disttrain.nn.linear import Linear
from disttrain.nn.module import Module
from disttrain.tensors import Tensor


class ASMOutput(NamedTuple):
    """What :class:`AdaptiveLogSoftmaxWithLoss` returns."""

    output: Tensor
    """The log-probability of each target."""
    loss: Tensor
    """Minus their mean."""


class AdaptiveLogSoftmaxWithLoss(Module):
    """A log-softmax in two steps, for classes ordered from frequent to rare (Grave et al. 2017).

    The head decides between the frequent classes and clusters of the others; each cluster has a tail of its own,
    which is computed only for the samples that need it, through fewer and fewer features.

    Args:
        in_features: features of the input.
        n_classes: number of classes.
        cutoffs: where the clusters begin: rising numbers in [1, n_classes - 1].
        div_value: each cluster has so many times fewer features than the one before.
        head_bias: let the head have a bias.
        device: where the parameters are.
        dtype: of the parameters, by default the default dtype.

    Raises:
        ValueError: there are no cutoffs, or they are not as described.
    """

    def __init__(
        self,
        in_features: int,
        n_classes: int,
        cutoffs: Sequence[int],
        div_value: float = 4.0,
        head_bias: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        starts = list(cutoffs)
        rising = all(a < b for a, b in zip([0, *starts], [*starts, n_classes], strict=True))
        if not starts or not rising or any(int(c) != c for c in starts):
            raise ValueError(
                f"cutoffs must be rising integers between 1 and n_classes - 1 = {n_classes - 1}, got {starts}"
            )
        self.in_features = in_features
        self.n_classes = n_classes
        self.cutoffs = [*starts, n_classes]
        self.div_value = div_value
        self.head_bias = head_bias
        self.shortlist_size = starts[0]
        self.n_clusters = len(starts)
        self.head_size = self.shortlist_size + self.n_clusters
        options = {"device": device, "dtype": dtype}
        self.head = Linear(in_features, self.head_size, bias=head_bias, **options)
        self.tail = ModuleList()
        for i, (start, end) in enumerate(self._clusters(), 1):
            width = int(in_features // div_value**i)
            down = Linear(in_features, width, bias=False, **options)
            self.tail.append(Sequential(down, Linear(width, end - start, bias=False, **options)))

    def _clusters(self) -> list[tuple[int, int]]:
        """Return the first class of each cluster and that behind its last."""
        return list(zip(self.cutoffs[:-1], self.cutoffs[1:], strict=True))

    def reset_parameters(self) -> None:
        """Draw all parameters again."""
        for layer in (self.head, *(linear for tail in self.tail for linear in tail)):
            layer.reset_parameters()

    def forward(self, input_: Tensor, target_: Tensor) -> ASMOutput:
        """Return the log-probability of each target and the loss, minus their mean.

        Args:
            input_: ``(N, in_features)`` or ``(in_features,)``.
            target_: classes ``(N,)``, or one class without dimensions.

        Raises:
            RuntimeError: shapes that do not fit, or targets that are no integers or out of range.
        """
        if target_.ndim > 1 or input_.ndim != target_.ndim + 1 or input_.shape[:-1] != target_.shape:
            raise RuntimeError(
                f"expected input (N, {self.in_features}) and target (N,), or one of each without N, got "
                f"{tuple(input_.shape)} and {tuple(target_.shape)}"
            )
        if target_.dtype not in (int32, int64):
            raise RuntimeError(f"target must be classes of int32 or int64, got {target_.dtype}")
        single = target_.ndim == 0
        x, target = (input_.unsqueeze(0), target_.unsqueeze(0)) if single else (input_, target_)
        if target.numel() and not 0 <= int(target.min()) <= int(target.max()) < self.n_classes:
            raise RuntimeError(
                f"target must be in [0, {self.n_classes}), got {int(target.min())} to {int(target.max())}"
            )
        target = target.long()
        choice = target.clone()  # of the head: a frequent class or a cluster
        parts = []
        for i, (start, end) in enumerate(self._clusters()):
            rows = ((target >= start) & (target < end)).nonzero().squeeze(1)
            if not rows.numel():
                continue
            choice.index_fill_(0, rows, self.shortlist_size + i)
            within = log_softmax(self.tail[i](x.index_select(0, rows)), 1)
            parts.append((rows, _pick(within, target.index_select(0, rows) - start)))
        output = _pick(log_softmax(self.head(x), 1), choice)
        for rows, part in parts:
            output = output.index_add(0, rows, part)
        loss = -output.mean()
        return ASMOutput(output.squeeze(0) if single else output, loss)

    def log_prob(self, input: Tensor) -> Tensor:
        """Return the log-probabilities of all classes ``(N, n_classes)`` for ``(N, in_features)``."""
        return self._log_prob(input, self.head(input))

    def _log_prob(self, input: Tensor, head: Tensor) -> Tensor:
        head = log_softmax(head, 1)
        n = self.shortlist_size
        parts = [head[:, :n]]
        for i, tail in enumerate(self.tail):
            parts.append(log_softmax(tail(input), 1) + head[:, n + i : n + i + 1])
        return cat(parts, 1)

    def predict(self, input: Tensor) -> Tensor:
        """Return the likeliest class ``(N,)`` for ``(N, in_features)``; the rare ones only where the head says so."""
        head = self.head(input)
        output: Tensor = head.argmax(1)
        rows = (output >= self.shortlist_size).nonzero().squeeze(1)
        if not rows.numel():
            return output
        rare = self._log_prob(input.index_select(0, rows), head.index_select(0, rows)).argmax(1)
        return output.index_copy(0, rows, rare)


def _pick(log_probs: Tensor, classes: Tensor) -> Tensor:
    """Return the element of each row (N, C) that ``classes`` (N,) names."""
    picked: Tensor = log_probs.gather(1, classes.unsqueeze(1)).squeeze(1)
    return picked
