"""A network in a file: points in the plane, drawn by an MLP. See docs/your-own-network.md.

fewstep tune own_mlp.py:moons --nfe 4 --budget 60s --out moons.json
sample own_mlp.py:moons --plan moons.json --seeds 0-999 --out moons.safetensors
fewstep compare own_mlp.py:moons --setting nfe=4 --setting plan=moons.json --seeds 0-999
"""

from pathlib import Path

import torch
from torch import nn

from fewstep import RectifiedFlow, from_module


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 128),
            nn.SiLU(),
            nn.Linear(128, 128),
            nn.SiLU(),
            nn.Linear(128, 128),
            nn.SiLU(),
            nn.Linear(128, 2),
        )

    def forward(self, x, time):
        return self.layers(torch.cat([x, time[:, None]], dim=1))


def draw_moons(n):
    """Two half circles, (n, 2)."""
    angle, side = torch.pi * torch.rand(n), torch.randint(2, (n,)) * 2.0 - 1.0
    x = angle.cos() + 0.5 * (1 - side) - 0.5
    return torch.stack([x, side * angle.sin() - 0.25 * side], dim=1)


def train(mlp, steps=1500):
    """Flow matching, some seconds."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(mlp.parameters(), lr=2e-3)
    for _ in range(steps):
        data, noise, time = draw_moons(512), torch.randn(512, 2), torch.rand(512)
        x = data + time[:, None] * (noise - data)
        loss = (mlp(x, time) - (noise - data)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def moons():
    """Points of two numbers; t = 1 is noise. Trained at the first call, the weights are kept."""
    mlp, weights = MLP(), Path(__file__).with_name("moons.pt")
    if not weights.exists():
        train(mlp)
        torch.save(mlp.state_dict(), weights)
    mlp.load_state_dict(torch.load(weights, weights_only=True))
    return from_module(mlp, schedule=RectifiedFlow(time_scale=1), prediction="flow", shape=(2,))
