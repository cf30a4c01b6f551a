"""The hidden layers of several models on pooled vectors as one batched product, with the dropout masks of each."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusion.data.batches import Batch
from fusion.models.pooled.dropout import Dropout, fill_mask
from fusion.models.pooled.vectors import PooledModel


class _Features(nn.Module):
    """A model's features as its `forward`, which torch.func calls."""

    def __init__(self, model: PooledModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        return self.model.features(text, image)


class Stack:
    """The hidden layers of several models as one, whose weights are those of the models: (models, ...) in memory."""

    def __init__(self, models: Sequence[PooledModel]) -> None:
        self._models = models
        self._template = _Features(copy.deepcopy(models[0])).train()
        self._parameters = [
            {name: value for name, value in model.named_parameters() if not name.startswith("head.")}
            for model in models
        ]
        self._stacked = {
            name: torch.stack([parameters[name].detach() for parameters in self._parameters]).requires_grad_()
            for name in self._parameters[0]
        }
        for at, parameters in enumerate(self._parameters):
            for name, parameter in parameters.items():
                parameter.data = self._stacked[name].data[at]
        self._dropouts = self._in_order()

    def _in_order(self) -> list[tuple[Dropout, list[float], int]]:
        """Each dropout in the order of the calls, which is that of the draws: with its probability in each model, and
        its width.
        """
        names = {module: name for name, module in self._template.model.named_modules() if isinstance(module, Dropout)}
        found: list[tuple[Dropout, list[float], int]] = []

        def note(module: nn.Module, arguments: tuple[Tensor]) -> None:
            assert isinstance(module, Dropout)
            each = [model.get_submodule(names[module]) for model in self._models]
            found.append((module, [one.probability for one in each if isinstance(one, Dropout)], arguments[0].shape[1]))

        hooks = [module.register_forward_pre_hook(note) for module in names]
        sizes = self._models[0].dimensions
        some = next(self._models[0].parameters())
        with torch.no_grad():
            self._template.eval()(
                some.new_zeros(1, sizes.text_vector_width), some.new_zeros(1, sizes.image_vector_width)
            )
        for hook in hooks:
            hook.remove()
        self._template.train()
        return found

    def features(self, batches: Sequence[Batch | None], draws: Sequence[torch.Generator]) -> Tensor:
        """The features of each model's batch, (models, longest, F); rows beyond a batch are of no post.

        draws: of each model, from which its masks come.
        """
        inputs = [model.inputs(batch) if batch else None for model, batch in zip(self._models, batches, strict=True)]
        lengths = [len(batch) if batch else 0 for batch in batches]
        first = next(pair for pair in inputs if pair)
        texts, images = (one.new_zeros(len(inputs), max(lengths), one.shape[1]) for one in first)
        for at, pair in enumerate(inputs):
            if pair:
                texts[at, : lengths[at]], images[at, : lengths[at]] = pair
        masks = [
            self._masks(probabilities, lengths, width, draws).to(texts.device)
            for _, probabilities, width in self._dropouts
        ]
        of_one = torch.func.vmap(self._features_of_one)
        features: Tensor = of_one(
            {f"model.{name}": value for name, value in self._stacked.items()}, masks, texts, images
        )
        return features

    def _features_of_one(
        self, parameters: dict[str, Tensor], masks: list[Tensor], text: Tensor, image: Tensor
    ) -> Tensor:
        for (dropout, _, _), given in zip(self._dropouts, masks, strict=True):
            dropout.given = given
        features: Tensor = torch.func.functional_call(self._template, parameters, (text, image))
        return features

    @staticmethod
    def _masks(probabilities: list[float], lengths: list[int], width: int, draws: Sequence[torch.Generator]) -> Tensor:
        """A dropout's masks, (models, longest, width), each drawn as its model alone would draw it."""
        masks = torch.empty(len(lengths), max(lengths), width)
        for at, (probability, length) in enumerate(zip(probabilities, lengths, strict=True)):
            if probability:
                fill_mask(masks[at, :length], probability, draws[at])
            else:
                masks[at, :length] = 1.0
            masks[at, length:] = 0.0
        return masks

    def hand_out_gradients(self) -> None:
        """Give each model's weights their part of the gradient."""
        for at, parameters in enumerate(self._parameters):
            for name, parameter in parameters.items():
                parameter.grad = self._stacked[name].grad[at]  # type: ignore[index]
        for value in self._stacked.values():
            value.grad = None
