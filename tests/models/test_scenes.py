"""Scenes show what their labels say; matching is the best of all assignments; the loss is DETR's, by hand."""

from itertools import permutations

import numpy as np
import pytest
import torch
from qkv_init import found
from test_post_ln import build

from coordcheck.config.schema import Scheme
from coordcheck.models.scenes import Scenes, make_scenes, match, set_loss


def test_objects_lie_where_the_boxes_say_and_nowhere_else():
    scenes = make_scenes(3, 20, noise=0.0)
    for features, labels, boxes in zip(scenes.features, scenes.classes, scenes.boxes, strict=True):
        covered = np.zeros(32, bool)
        for label, (centre, length) in zip(labels.tolist(), (32 * boxes).tolist(), strict=True):
            tokens = slice(round(centre - length / 2), round(centre + length / 2))
            assert not covered[tokens].any()
            if label < 8:
                covered[tokens] = True
                assert features[tokens].equal(features[tokens][:1].expand(round(length), -1))
        assert (features.abs().sum(-1).numpy() > 0).tolist() == covered.tolist()


def test_a_class_looks_the_same_in_every_batch_and_another_class_does_not():
    looks = {}
    for seed in (0, 1):
        scenes = make_scenes(seed, 50, noise=0.0)
        for b, k in np.argwhere(scenes.classes.numpy() < 8):
            start = round(32 * (scenes.boxes[b, k, 0] - scenes.boxes[b, k, 1] / 2).item())
            looks.setdefault(scenes.classes[b, k].item(), set()).add(tuple(scenes.features[b, start].tolist()))
    assert sorted(looks) == list(range(8))
    assert all(len(look) == 1 for look in looks.values())
    assert len(set.union(*looks.values())) == 8


def test_a_quarter_of_the_objects_is_absent_and_the_seed_decides():
    scenes, again, other = make_scenes(0, 2000), make_scenes(0, 2000), make_scenes(1, 2000)
    assert (scenes.classes == 8).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert scenes.features.equal(again.features)
    assert not scenes.features.equal(other.features)


def test_objects_must_fit():
    with pytest.raises(ValueError, match=r"2 \* objects <= length \+ 1; got objects=4, length=6. For example length=8"):
        make_scenes(0, 1, length=6)


@pytest.fixture
def predicted():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, 4, generator=generator)
    boxes = torch.rand(6, 5, 2, generator=generator)
    scenes = make_scenes(0, 6, classes=3, objects=3)
    return logits, boxes, scenes


def test_matching_is_the_cheapest_of_all_assignments(predicted):
    logits, boxes, scenes = predicted
    probability = logits.softmax(-1)

    def cost(b: int, queries: tuple[int, ...]) -> float:
        total = 0.0
        for k, q in enumerate(queries):
            label = scenes.classes[b, k].item()
            if label < 3:
                distance = (boxes[b, q] - scenes.boxes[b, k]).abs().sum().item()
                total += 5 * distance - probability[b, q, label].item()
        return total

    assert (scenes.classes == 3).any()
    for b, queries in enumerate(match(*predicted).tolist()):
        assert len(set(queries)) == 3
        assert cost(b, tuple(queries)) == pytest.approx(min(cost(b, p) for p in permutations(range(5), 3)))


def test_the_loss_by_hand(predicted):
    logits, boxes, scenes = predicted
    logs, query = logits.log_softmax(-1), match(*predicted)
    entropy = weights = distance = present = 0.0
    for b in range(6):
        label_of = dict(zip(query[b].tolist(), scenes.classes[b].tolist(), strict=True))
        for q in range(5):
            label = label_of.get(q, 3)
            weight = 0.1 if label == 3 else 1.0
            entropy -= weight * logs[b, q, label].item()
            weights += weight
        for k in range(3):
            if scenes.classes[b, k] < 3:
                distance += (boxes[b, query[b, k]] - scenes.boxes[b, k]).abs().sum().item()
                present += 1
    assert set_loss(*predicted).item() == pytest.approx(entropy / weights + 5 * distance / present, rel=1e-5)


def test_the_order_of_queries_and_objects_does_not_matter(predicted):
    logits, boxes, scenes = predicted
    swapped = Scenes(scenes.features, scenes.classes.flip(1), scenes.boxes.flip(1))
    torch.testing.assert_close(set_loss(logits.flip(1), boxes.flip(1), swapped), set_loss(*predicted))


def test_found_counts_right_classes_at_right_places():
    scenes = make_scenes(0, 4)
    logits = 10 * torch.nn.functional.one_hot(scenes.classes, 9).float()
    assert found(logits, scenes.boxes, scenes) == 1.0
    assert found(logits, scenes.boxes + 0.06, scenes) == 0.0
    assert found(logits.roll(1, -1), scenes.boxes, scenes) == 0.0


def test_a_small_model_learns_it():
    model = build(Scheme.xavier_packed, 64, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    held_out = make_scenes(10**6, 128)
    start = found(*(x[-1] for x in model(held_out.features)), held_out)
    for step in range(250):
        scenes = make_scenes(step, 32)
        optimizer.zero_grad()
        set_loss(*(x[-1] for x in model(scenes.features)), scenes).backward()
        optimizer.step()
    assert start < 0.15
    assert found(*(x[-1] for x in model(held_out.features)), held_out) > 0.4
