# %% [markdown]
# # Evaluation with a metric of your own
#
# FID is for images. What is the figure for your data? Any function of the samples that returns a
# number. Here the data are eight clusters with unequal shares, and the figure is the sliced
# Wasserstein distance to real data. `fewstep.evaluate` measures it for every solver and number of
# evaluations, in blocks of seeds whose spread says how far a figure can be trusted.

# %%
import math

import torch

from fewstep import GaussianMixture, RectifiedFlow, evaluate

N = 2000
BLOCKS = 3

# %% [markdown]
# The network is exact here: the best prediction for a mixture of Gaussians has a closed form. So
# what is left is the error of the solver. Yours comes from `from_module` or `load`.

# %%
angle = 2 * math.pi * torch.arange(8) / 8
law = GaussianMixture(
    means=1.5 * torch.stack([angle.cos(), angle.sin()], dim=1),
    stds=torch.full((8, 1), 0.1),
    weights=torch.arange(1.0, 9.0) / 36,
)
network = law.network(RectifiedFlow(time_scale=1), shape=(2,))

# %% [markdown]
# ## The figure
#
# Along a direction, the distance of two clouds of equal size is that of their sorted shadows. We
# take the mean over 64 directions. Less is better, and 0 is out of reach: two clouds of real data
# are apart too, which is the floor.

# %%
turn = math.pi * torch.arange(64) / 64
directions = torch.stack([turn.cos(), turn.sin()])
real, other = (law.draw(N, (2,), torch.Generator().manual_seed(seed)) for seed in (0, 1))


def sliced_wasserstein(samples):
    gap = (samples @ directions).sort(0).values - (real @ directions).sort(0).values
    return gap.abs().mean()


table = evaluate(
    network,
    solvers=["euler", "unipc-2", "sde-dpmpp-2"],
    grids=["beta"],
    nfe=[4, 8, 16],
    n=N,
    blocks=BLOCKS,
    batch=N,
    metric=sliced_wasserstein,
)
print(table.table())
floor = float(sliced_wasserstein(other))
print(f"real data: {floor:.4f}")

# %% [markdown]
# The points are there to compute with: here the best setting of each number of evaluations.

# %%
for nfe in (4, 8, 16):
    best = table.best(point for point in table.points if point.nfe == nfe)
    print(f"{nfe:2} evaluations: {best.setting} ({best.mean:.4f})")
assert best.mean < 3 * floor
