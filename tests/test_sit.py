"""SiT's conventions against the exact law on each of its paths."""

import pytest
import torch
from laws import GAUSSIAN, MIXTURE

from fewstep import Sampler, from_sit
from fewstep.models.denoiser import Denoiser
from fewstep.models.errors import UnknownNameError
from fewstep.models.prediction import Prediction
from fewstep.models.sit import PATHS

SHAPE = (1, 2, 2)


def answer_as_sit(law, path):
    """The velocity towards data of a law, told 1 - t, as a SiT answers it."""
    field = Denoiser(law.network(PATHS[path].schedule, SHAPE, Prediction.FLOW))

    def answer(x, time, labels):
        assert labels.dtype == torch.int64
        (velocity,) = field.velocity(x, field.network.schedule.at(1.0 - float(time[0])))
        return -velocity

    return answer


@pytest.mark.parametrize("path", PATHS)
def test_x0_through_the_adapter_is_that_of_the_law(path):
    network = from_sit(answer_as_sit(MIXTURE, path), path=path, shape=SHAPE)
    x = torch.linspace(-1.0, 1.0, 8, dtype=torch.float64).reshape(2, *SHAPE)
    for t in (0.01, 0.25, 0.5, 0.99):
        node = network.schedule.at(t)
        conditions = {"cond": {"class_labels": torch.tensor([3, 5])}}
        (x0,) = Denoiser(network, conditions).x0(x, node)
        torch.testing.assert_close(x0, MIXTURE.x0(x, node), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", ["linear", "gvp"])
def test_a_run_from_pure_noise_ends_at_the_law(path):
    network = from_sit(answer_as_sit(GAUSSIAN, path), path=path, shape=SHAPE)
    samples = Sampler(network)(range(400), class_labels=1, nfe=20, batch=400).samples.flatten(1)
    torch.testing.assert_close(samples.mean(0), GAUSSIAN.means[0].float(), rtol=0, atol=0.16)
    torch.testing.assert_close(samples.std(0), GAUSSIAN.stds[0].float(), rtol=0.12, atol=0)


def test_twice_the_channels_are_a_learned_sigma_and_other_paths_are_refused():
    answer = answer_as_sit(GAUSSIAN, "gvp")
    whole = from_sit(lambda *given: answer(*given).repeat(1, 2, 1, 1), path="gvp", shape=SHAPE)
    plain = from_sit(answer, path="gvp", shape=SHAPE)
    runs = (Sampler(each)([1], class_labels=0, nfe=4).samples for each in (whole, plain))
    torch.testing.assert_close(*runs, rtol=0, atol=0)
    assert (plain.num_classes, plain.null_class) == (1000, 1000)
    with pytest.raises(UnknownNameError, match="path of SiT 'gpv'; did you mean 'gvp'"):
        from_sit(answer, path="gpv")
