# %% [markdown]
# # Point clouds: rings in space
#
# A sample need not be an image. Here it is a set of points: a ring of random size, tilted at
# random. The network treats all points alike and lets them see a mean over the set, so the order
# of points means nothing, and it may draw more points than it was trained on.
#
# It draws with matplotlib: `pip install -c constraints.txt -e '.[report]'`.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn

from fewstep import RectifiedFlow, compare, from_module

TRAINING_STEPS = 1500
CLOUDS = 64
CONVERGED = {"solver": "unipc-3", "nfe": 60}
torch.manual_seed(0)


def draw_rings(n, points):
    """Rings of radius 1 to 2 around the origin, (n, points, 3)."""
    plane = torch.linalg.qr(torch.randn(n, 3, 2)).Q.mT
    angle = 2 * torch.pi * torch.rand(n, points, 1)
    return (1 + torch.rand(n, 1, 1)) * torch.cat([angle.cos(), angle.sin()], dim=2) @ plane


# %% [markdown]
# ## A network that is blind to the order
#
# Each layer sees a point and the mean of what all points of its cloud say. Without the mean, no
# point could know in which plane the others lie.


# %%
class Layer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.each, self.all = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        pooled = self.all(x).relu().mean(1, keepdim=True)
        return x + nn.functional.silu(self.each(x) + pooled)


class SetNetwork(nn.Module):
    def __init__(self, width=96, layers=5):
        super().__init__()
        self.into, self.out = nn.Linear(3 + 6 + 2, width), nn.Linear(width, 3)
        self.layers = nn.Sequential(*(Layer(width) for _ in range(layers)))

    def forward(self, x, time):
        t = time[:, None, None].expand(*x.shape[:2], 1) * torch.pi
        i, j = torch.triu_indices(3, 3)
        told = torch.cat([x, x[..., i] * x[..., j], t.cos(), t.sin()], dim=2)
        return self.out(self.layers(self.into(told)))


model = SetNetwork()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TRAINING_STEPS)
for _ in range(TRAINING_STEPS):
    data, t = draw_rings(32, 32), torch.rand(32)
    noise = torch.randn_like(data)
    x = data + t[:, None, None] * (noise - data)
    loss = (model(x, t) - (noise - data)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    decay.step()

order = torch.randperm(32)
assert torch.allclose(model(x[:, order], t), model(x, t)[:, order], atol=1e-5)

# %% [markdown]
# ## Are they rings?
#
# A figure of our own: how thick a ring is, the root mean square distance of its points from its
# plane, over its radius. `compare` takes it beside its own columns. Noise has a thickness of
# about a half; what many evaluations leave is the error of the network, which trains for seconds.
# The shape says 96 points, three times as many as in training.


# %%
def measure_thickness(clouds, _):
    """One number for each cloud."""
    widths = torch.linalg.svdvals(clouds - clouds.mean(1, keepdim=True))
    return widths[:, 2] / widths[:, 0]


network = from_module(
    model, schedule=RectifiedFlow(time_scale=1), prediction="flow", shape=(96, 3), name="rings"
)
settings = {f"{nfe} evaluations": {"nfe": nfe} for nfe in (2, 4, 8, 16)}
metrics = {"thickness": measure_thickness}
comparison = compare(network, settings, seeds=range(CLOUDS), metrics=metrics, converged=CONVERGED)
print(comparison.table())

# %%
figure, panels = plt.subplots(1, 4, figsize=(12, 3.2), subplot_kw={"projection": "3d"})
for panel, run in zip(panels, comparison.runs, strict=True):
    for cloud in run.samples[:2]:
        panel.scatter(*cloud.T.tolist(), s=6)
    panel.set_title(run.name)
figure.savefig("point_clouds.png")

# %%
coarse, *_, fine = (run.figures["thickness"] for run in comparison.runs)
print(f"thickness at 2 evaluations {coarse:.3f}, at 16 {fine:.3f}")
assert fine < 0.6 * coarse
