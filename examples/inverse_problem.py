# %% [markdown]
# # Inverse problems: what was there?
#
# A network that draws garments can also restore one, without further training: guidance pulls the
# run towards images that agree with what was measured. First the lower half of each garment is
# hidden. Then no pixel is seen at all, but only two shadows of each: the sums of its rows and of
# its columns.
#
# It draws with matplotlib: `pip install -c constraints.txt -e '.[report]'`.

# %%
import matplotlib.pyplot as plt
import torch

from fewstep import LinearMap, Measured, Sampler

IMAGES = 6
NFE = 30
SHAPE = (1, 32, 32)
torch.manual_seed(0)
sampler = Sampler.from_pretrained("fashion-dit")

# %% [markdown]
# The truth is drawn by the network itself, as nothing is downloaded here. With an image of your
# own, `truth` is a tensor (1, 1, 32, 32) in [-1, 1]. When it restores, the network is not told
# the class.

# %%
seeds = range(100, 100 + IMAGES)
truth = sampler(seeds, class_labels=[seed % 10 for seed in seeds], nfe=10).samples


def measure_error(a, b):
    """The root mean square difference."""
    return float((a - b).square().mean().sqrt())


# %% [markdown]
# ## Half of the pixels
#
# An operator is any linear function of the samples. `Measured` takes it with the measurement and
# the deviation of its noise; `diffpir` is the cheapest method, and `mmps` differentiates the
# network and asks more of it.


# %%
def see_upper_half(x):
    return x[..., :16, :]


def see_shadows(x):
    return torch.cat([x.mean(-1), x.mean(-2)], dim=-1)


def restore(function, sigma_y):
    """Returns what each method restores from a measurement of the truth, by name."""
    y = function(truth) + sigma_y * torch.randn_like(function(truth))
    restored = {"nothing": sampler(range(IMAGES), nfe=NFE, solver="ddpm").samples}
    for method in ("diffpir", "mmps"):
        policy = Measured(LinearMap(function, SHAPE), y, sigma_y=sigma_y, method=method)
        restored[method] = sampler(range(IMAGES), nfe=NFE, guidance=policy).samples
    for name, images in restored.items():
        misfit, error = measure_error(function(images), y), measure_error(images, truth)
        print(f"  by {name:8} measurement missed by {misfit:.3f}, truth by {error:.3f}")
    return restored


print("from the upper half:")
halves = restore(see_upper_half, 0.02)
print("from two shadows:")
shadows = restore(see_shadows, 0.01)

# %% [markdown]
# The rows of the picture: the truth; restored from the upper half by `diffpir` and `mmps`; from
# the shadows by the same two. Each image is three times as large as the network draws it.

# %%
shown = [truth, *list(halves.values())[1:], *list(shadows.values())[1:]]
rows = [torch.cat(list(images[:, 0]), dim=1) for images in shown]
picture = torch.cat(rows).repeat_interleave(3, 0).repeat_interleave(3, 1)
plt.imsave("inverse_problem.png", picture, cmap="gray", vmin=-1, vmax=1)

# %%
for restored in (halves, shadows):
    unguided, *guided = (measure_error(images, truth) for images in restored.values())
    assert max(guided) < 0.8 * unguided
