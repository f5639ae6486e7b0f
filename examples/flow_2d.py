# %% [markdown]
# # A flow of your own, in the plane
#
# How few evaluations does a small network need, once it is trained? We train an MLP by flow
# matching on a pinwheel of points, in seconds, and compare solvers at four to eight evaluations
# with where the run converges. Then `fewstep.tune` looks for something better.
#
# It draws with matplotlib: `pip install -c constraints.txt -e '.[report]'`.

# %%
import math

import torch
from torch import nn

from fewstep import RectifiedFlow, compare, from_module, tune

TRAINING_STEPS = 1500
SEARCH = {"budget": "candidates=30", "noises": "256,128,256"}
SEEDS = range(1000)
torch.manual_seed(0)


def draw_pinwheel(n):
    """Five bent arms, (n, 2)."""
    arm = torch.randint(5, (n,))
    along, across = 1.0 + 0.3 * torch.randn(n), 0.1 * torch.randn(n)
    angle = 2 * math.pi * arm / 5 + 0.6 * along
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([along * cos - across * sin, along * sin + across * cos], dim=1)


# %% [markdown]
# ## Training
#
# The state is x_t = (1 - t) data + t noise, and the network learns the velocity noise - data. It
# is any module `f(x, time)`.


# %%
class MLP(nn.Module):
    def __init__(self, width=128):
        super().__init__()
        parts = [nn.Linear(6, width), nn.SiLU()]
        parts += [nn.Linear(width, width), nn.SiLU()] * 2
        self.layers = nn.Sequential(*parts, nn.Linear(width, 2))

    def forward(self, x, time):
        t = time[:, None] * math.pi
        return self.layers(torch.cat([x, t, t.cos(), t.sin(), (2 * t).cos()], dim=1))


mlp = MLP()
optimizer = torch.optim.Adam(mlp.parameters(), lr=2e-3)
for _ in range(TRAINING_STEPS):
    data, noise, t = draw_pinwheel(512), torch.randn(512, 2), torch.rand(512)
    x = data + t[:, None] * (noise - data)
    loss = (mlp(x, t) - (noise - data)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %% [markdown]
# ## Sampling
#
# `from_module` is told what the weights do not say: the process, the unit of the time, what the
# network returns, and the shape of one sample. `compare` draws the same seeds under each setting;
# the distance is from the converged run of the same noises.

# %%
network = from_module(
    mlp, schedule=RectifiedFlow(time_scale=1), prediction="flow", shape=(2,), name="pinwheel"
)
solvers = ["euler", "rf-solver", "dpmpp-2m", "unipc-2"]
settings = {f"{each}, {nfe}": {"solver": each, "nfe": nfe} for nfe in (4, 8) for each in solvers}
print(compare(network, settings, seeds=SEEDS, batch=len(SEEDS)).table())

# %% [markdown]
# ## Tuning
#
# A named solver knows nothing of this network. `tune` tries solvers and grids and searches a
# table of times and weights for it; the plan is a file that every command and call takes.

# %%
tune(network, nfe=4, batch=len(SEEDS), out="flow_2d.json", **SEARCH)
plans = {"default, 4": {"nfe": 4}, "plan, 4": {"plan": "flow_2d.json"}, "default, 8": {"nfe": 8}}
comparison = compare(network, plans, seeds=SEEDS, batch=len(SEEDS))
print(comparison.table())
comparison.save("flow_2d.png")

# %%
default, plan, _ = (run.distance.value for run in comparison.runs)
print(f"four evaluations: {default:.3f} by default, {plan:.3f} with the plan")
assert plan < default
