"""A set-prediction task with real structure that a CPU learns in a minute: find the objects on a line.

A scene is a line of tokens on which disjoint intervals, the objects, show a noisy signature of their class. A model
must say class, centre and length of each, in any order. The loss is DETR's (Carion et al. 2020, section 3.1):
predictions are matched with objects at the least cost, then cross entropy with a class "no object" and the L1
distance of boxes; the generalized IoU is left out, for on a line L1 alone suffices. Scenes are generated, seeded.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

# facebookresearch/detr main.py: --set_cost_bbox and --bbox_loss_coef, --eos_coef
BOX_WEIGHT = 5.0
NO_OBJECT_WEIGHT = 0.1
SIGNATURE_SEED = 0  # the classes look the same in every batch of every seed


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes.

    Attributes:
        features: What the tokens show, (B, S, I).
        classes: Class of each object, (B, K); the number of classes C stands for an absent object.
        boxes: Centre and length of each object as shares of the line, (B, K, 2).
    """

    features: Tensor
    classes: Tensor
    boxes: Tensor

    def to(self, device: torch.device) -> "Scenes":
        """The same scenes there."""
        return Scenes(self.features.to(device), self.classes.to(device), self.boxes.to(device))


def make_scenes(
    seed: int,
    scenes: int,
    *,
    length: int = 32,
    input_size: int = 16,
    classes: int = 8,
    objects: int = 4,
    noise: float = 0.5,
) -> Scenes:
    """Draws scenes.

    Args:
        seed: Of places, classes and noise.
        scenes: B.
        length: S, tokens on the line.
        input_size: I, features of a token.
        classes: C; the signature of a class is a vector of I entries from N(0, 1).
        objects: K, the most objects in a scene; each is absent with probability 1/4.
        noise: Standard deviation of what is added to each feature.

    Returns:
        The scenes, on the CPU.

    Raises:
        ValueError: if the objects do not fit on the line.
    """
    if 2 * objects > length + 1:
        raise ValueError(
            f"`objects` disjoint intervals need 2 * objects <= length + 1; got objects={objects}, length={length}. "
            f"For example length={2 * objects}."
        )
    signatures = np.random.default_rng(SIGNATURE_SEED).standard_normal((classes, input_size))
    signatures = np.concatenate([signatures, np.zeros((1, input_size))])  # an absent object shows nothing
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((scenes, objects)) < 0.25, classes, rng.integers(classes, size=(scenes, objects)))
    borders = rng.permuted(np.tile(np.arange(length + 1), (scenes, 1)), axis=1)[:, : 2 * objects]
    start, end = np.moveaxis(np.sort(borders).reshape(scenes, objects, 2), -1, 0)
    token = np.arange(length)
    covers = (start[..., None] <= token) & (token < end[..., None])  # (B, K, S)
    shown = np.einsum("bks,bki->bsi", covers, signatures[labels])
    features = shown + noise * rng.standard_normal(shown.shape)
    boxes = np.stack([(start + end) / 2, end - start], axis=-1) / length
    return Scenes(torch.tensor(features, dtype=torch.float32), torch.tensor(labels), torch.tensor(boxes).float())


def match(logits: Tensor, boxes: Tensor, scenes: Scenes) -> Tensor:
    """Which query predicts which object: the assignment of least total cost.

    An absent object costs nothing wherever it goes, so it takes a query that is left over.

    Args:
        logits: (B, Q, C + 1).
        boxes: (B, Q, 2).
        scenes: What is to be found.

    Returns:
        A query for every object, (B, K).
    """
    absent = logits.shape[-1] - 1
    labels = scenes.classes[:, None].expand(-1, logits.shape[1], -1)
    cost = BOX_WEIGHT * torch.cdist(boxes, scenes.boxes, p=1) - logits.softmax(-1).gather(-1, labels)
    cost = cost.masked_fill(labels == absent, 0.0).detach().cpu()
    # transposed, so that rows are objects and come back in order
    return torch.tensor(np.stack([linear_sum_assignment(c.T)[1] for c in cost.numpy()]), device=logits.device)


def set_loss(logits: Tensor, boxes: Tensor, scenes: Scenes) -> Tensor:
    """DETR's loss of one set of predictions.

    Args:
        logits: (B, Q, C + 1).
        boxes: (B, Q, 2).
        scenes: What is to be found.

    Returns:
        Cross entropy, "no object" counting a tenth, plus five times the mean L1 distance of the objects' boxes.
    """
    absent = logits.shape[-1] - 1
    query = match(logits, boxes, scenes)
    target = torch.full(logits.shape[:2], absent, device=logits.device).scatter(1, query, scenes.classes)
    weight = torch.ones(absent + 1, device=logits.device)
    weight[absent] = NO_OBJECT_WEIGHT
    cross_entropy = F.cross_entropy(logits.transpose(1, 2), target, weight)
    present = scenes.classes != absent
    predicted = boxes.gather(1, query[..., None].expand_as(scenes.boxes))
    distance = (predicted - scenes.boxes).abs().sum(-1)[present]
    return cross_entropy + BOX_WEIGHT * distance.mean()
