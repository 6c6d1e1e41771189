"""Where tokens went is what the model's gates say, and where they come from is what the model's gradients say."""

import numpy as np
import torch

import patchloom
from patchloom.experts import Routing, apart, token_places


def test_sets_are_the_gates_choices(mixture, seeing, scenes):
    for number, task in enumerate(seeing.tasks):
        routing = Routing()
        patchloom.run(seeing, scenes[:1], task=task.name, observe=routing)
        sets, _ = routing.taken(task)
        logits = mixture.mixtures[0].gates[number](mixture.embedded(torch.from_numpy(scenes[:1]))[0])
        wanted = torch.zeros_like(logits, dtype=torch.bool).scatter(1, logits.topk(2).indices, value=True)
        assert (sets.sum(axis=1) == 2).all()
        assert (sets == wanted.numpy()).mean() > 0.9  # quantisation moves a token near a tie
        assert routing._found == []


def test_places_are_the_pixels_that_a_token_depends_on(mixture, seeing, scenes):
    image = torch.from_numpy(scenes[:1]).requires_grad_()
    tokens = mixture.embedded(image)[0]
    for task in seeing.tasks:
        places, after = token_places(seeing, task, task.inputs[0], (1, 2))
        np.testing.assert_array_equal(places, after)
        assert len(places) == len(tokens) == 9
        assert places[0, 2] <= places[0, 0]  # the class token
        for token, (top, left, bottom, right) in zip(tokens[1:], places[1:], strict=True):
            [slope] = torch.autograd.grad(token.sum(), image, retain_graph=True)
            seen = np.zeros((8, 16), bool)
            seen[top:bottom, left:right] = True
            np.testing.assert_array_equal(slope[0, 0] != 0, seen)
        assert apart(places)


def test_tokens_that_share_pixels_or_have_none_are_not_apart():
    assert apart(np.array([[0, 0, 2, 2], [0, 2, 2, 4]]))
    assert not apart(np.array([[0, 0, 2, 3], [0, 2, 2, 4]]))
    assert not apart(np.array([[5, 5, 0, 0]]))
