# %% [markdown]
# # Action chunks: how many evaluations does a robot need?
#
# A flow policy looks at the scene and draws the next 16 positions of a gripper at once. Here an
# obstacle lies half way to the goal, and the demonstrations pass it on the left or on the right.
# A single evaluation cannot choose: it answers with the mean of both and mostly runs into the
# obstacle. We count how often, against the milliseconds that a chunk takes.

# %%
import time
from statistics import median

import torch
from torch import nn

from fewstep import RectifiedFlow, Sampler, from_module

TRAINING_STEPS = 1500
GOALS = 500
REPEATS = 10
HORIZON = 16
torch.manual_seed(0)


def draw_goals(n):
    """Goals at distance 2 in front of the robot, (n, 2): what the policy observes."""
    angle = torch.rand(n) - 0.5
    return 2 * torch.stack([angle.cos(), angle.sin()], dim=1)


def demonstrate(goals):
    """A path to each goal, bent to one side of the obstacle, (n, HORIZON, 2)."""
    done = torch.linspace(0, 1, HORIZON)[:, None]
    side = torch.randint(2, (len(goals), 1, 1)) * 2.0 - 1.0
    across = torch.stack([-goals[:, 1], goals[:, 0]], dim=1)[:, None] / 2
    bend = side * (0.8 + 0.05 * torch.randn(len(goals), 1, 1))
    return done * goals[:, None] + bend * (torch.pi * done).sin() * across


# %% [markdown]
# ## The policy
#
# Robotics writes flow matching with noise at t = 0 and data at t = 1, and the network returns
# data - noise. `noise_at=0` and `"flow-to-data"` say so; nothing else changes. Every parameter
# after the time is a condition.


# %%
class Policy(nn.Module):
    def __init__(self, width=256):
        super().__init__()
        parts = [nn.Linear(2 * HORIZON + 2 + 3, width), nn.SiLU()]
        parts += [nn.Linear(width, width), nn.SiLU()] * 2
        self.layers = nn.Sequential(*parts, nn.Linear(width, 2 * HORIZON))

    def forward(self, x, time, goal):
        t = torch.pi * time[:, None]
        told = torch.cat([x.flatten(1), goal, t, t.cos(), t.sin()], dim=1)
        return self.layers(told).view_as(x)


policy = Policy()
optimizer = torch.optim.Adam(policy.parameters(), lr=2e-3)
decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TRAINING_STEPS)
for _ in range(TRAINING_STEPS):
    goals = draw_goals(256)
    data, t = demonstrate(goals), torch.rand(256)
    noise = torch.randn_like(data)
    x = noise + t[:, None, None] * (data - noise)
    loss = (policy(x, t, goals) - (data - noise)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    decay.step()

network = from_module(
    policy,
    schedule=RectifiedFlow(time_scale=1, noise_at=0),
    prediction="flow-to-data",
    shape=(HORIZON, 2),
)
sampler = Sampler(network)

# %% [markdown]
# ## Collisions against milliseconds
#
# The obstacle has a radius of 0.25 around the middle of the way. The time is that of one chunk
# for one observation, as a control loop asks for it.


# %%
def measure_collisions(chunks, goals):
    """The share of chunks that come too near to the middle of their way."""
    nearest = (chunks - goals[:, None] / 2).norm(dim=2).amin(1)
    return float((nearest < 0.25).float().mean())


def time_chunk(nfe):
    """The median time of one chunk, in milliseconds."""
    times = []
    for seed in range(REPEATS):
        start = time.perf_counter()
        sampler([seed], nfe=nfe, conditions={"goal": goals[:1]})
        times.append(1e3 * (time.perf_counter() - start))
    return median(times)


goals, collisions = draw_goals(GOALS), {}
print("evaluations  collisions  miss of the goal  ms a chunk")
for nfe in (1, 2, 3, 4, 6, 8):
    chunks = sampler(range(GOALS), nfe=nfe, conditions={"goal": goals}, batch=GOALS).samples
    collisions[nfe] = measure_collisions(chunks, goals)
    miss = float((chunks[:, -1] - goals).norm(dim=1).median())
    print(f"{nfe:11} {collisions[nfe]:11.1%} {miss:17.3f} {time_chunk(nfe):11.1f}")

# %%
assert collisions[1] > 0.5 > 0.1 > collisions[6]
