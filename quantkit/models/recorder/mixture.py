"""The recorded operations that send tokens to experts. `Recorder` has them, beside all others."""

from __future__ import annotations

from collections.abc import Sequence

from quantkit.models.program import Assignment, Choice, Recording, Value
from quantkit.models.recorder.checks import plain
from quantkit_kernels.interpreter.operations import MOST_EXPERTS, SCORINGS


class MixtureOperations(Recording):
    """Records mixtures of experts: who is chosen, and what the chosen ones compute."""

    def route(
        self,
        logits: Value,
        top_k: int,
        *,
        scoring: str = "softmax",
        normalize: bool = False,
        factor: float = 1.0,
        tolerance: float = 0.0,
        bias: str | None = None,
        bias_shape: tuple[int, ...] | None = None,
        groups: int = 1,
        chosen_groups: int = 1,
        group_best: int = 1,
    ) -> Choice:
        """Choose `top_k` experts for each token by a router's logits `[T, experts]`.

        Parameters
        ----------
        logits : Value
        top_k : int
        scoring : {"softmax", "sigmoid", "softmax_of_chosen", "softmax_of_close"}
            What makes scores of logits: the softmax of all, the logistic function of each, the softmax of those that
            are chosen, or, for each choice, the softmax of those that are left and close to the best, which is chosen
            (SparseMixer, Liu et al., 2024).
        normalize : bool
            Divide a token's weights by their sum, before they are multiplied by `factor`.
        tolerance : float
            How far a close logit is from the best at most, relative to the larger of both.
        bias : str, optional
            A tensor `[experts]`, by its full name, that is added to scores for the choice alone (DeepSeek-V3).
        bias_shape : tuple of int, optional
            As it is stored, where that is another: ERNIE 4.5 has `(1, experts)`.
        groups, chosen_groups, group_best : int
            Choose from the best `chosen_groups` of `groups` groups of consecutive experts; a group is as good as the
            sum of its `group_best` best experts.
        """
        experts = logits.columns
        if not 0 < top_k <= experts <= MOST_EXPERTS or experts % groups or not 0 < chosen_groups <= groups:
            raise ValueError(f"cannot choose {top_k} of {experts} experts, {chosen_groups} of {groups} groups")
        if scoring not in SCORINGS or group_best not in (1, 2) or top_k > experts // groups * chosen_groups:
            raise ValueError(f"cannot choose {top_k} experts by {scoring} and the best {group_best} of each group")
        if scoring == "softmax_of_close" and (bias or groups > 1):
            raise ValueError(f"route: {scoring} has neither a bias nor groups")
        if not plain(logits):
            raise ValueError("route: experts are chosen for all tokens of a batch")
        routing = self._record(
            "route",
            (logits,),
            2 * top_k,
            (self._tensor(bias, bias_shape or (experts,), "bias"),) if bias else (),
            experts=experts,
            top_k=top_k,
            scoring=scoring,
            groups=groups,
            chosen_groups=chosen_groups,
            group_best=group_best,
            normalize=normalize,
            factor=factor,
            tolerance=tolerance,
        )
        assigned = Assignment(len(self._operations), experts, top_k)
        return Choice(logits, routing, self._append("assign", (routing,), assigned, experts=experts, top_k=top_k))

    def scale_choice(self, choice: Choice, weight: str) -> Choice:
        """Multiply a token's weight for each of its experts by the expert's own number of a tensor `[experts]`."""
        assigned = choice.assigned
        tensors = (self._tensor(weight, (assigned.experts,), "norm"),)
        routing = self._record("scale_choice", (choice.routing,), 2 * assigned.top_k, tensors, top_k=assigned.top_k)
        return Choice(choice.logits, routing, assigned)

    def gather(self, x: Value, choice: Choice) -> Value:
        """The rows of a token for each of its experts -> `[T * top_k, columns]`, sorted by expert."""
        assigned = choice.assigned
        if not plain(x):
            raise ValueError("gather: rows of all tokens of a batch go to experts")
        rows = Value(len(self._operations), x.columns, per_token=assigned.top_k)
        return self._append("gather", (x, assigned), rows, experts=assigned.experts, top_k=assigned.top_k)

    def expert_linear(
        self, x: Value, choice: Choice, modules: Sequence[str], rows: int, *, bias: bool = False
    ) -> Value:
        """`x @ weight.T (+ bias)`, each row with the weight of its own expert -> `[T * top_k, rows]`.

        `modules` names that of each expert; all their weights are `[rows, x.columns]`.
        """
        assigned = choice.assigned
        if x.per_token != assigned.top_k or len(modules) != assigned.experts:
            raise ValueError(f"{len(modules)} modules and {x.per_token} rows a token do not fit {assigned}")
        tensors = [self._tensor(f"{module}.weight", (rows, x.columns), "expert") for module in modules]
        if bias:
            tensors += [self._tensor(f"{module}.bias", (rows,), "bias") for module in modules]
        y = Value(len(self._operations), rows, per_token=x.per_token)
        return self._append("expert_linear", (x, assigned), y, tuple(tensors), experts=assigned.experts)

    def combine(self, y: Value, choice: Choice) -> Value:
        """The sum of what a token's experts made, times their weights -> `[T, columns]`."""
        assigned = choice.assigned
        if y.per_token != assigned.top_k:
            raise ValueError(f"combine: {y.per_token} rows a token do not fit {assigned}")
        total = Value(len(self._operations), y.columns)
        inputs = (y, assigned, choice.routing)
        return self._append("combine", inputs, total, experts=assigned.experts, top_k=assigned.top_k)
