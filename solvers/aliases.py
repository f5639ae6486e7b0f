"""Names that solvers have in k-diffusion, ComfyUI and elsewhere, as settings of ours.

They are understood wherever a solver is named, also with _ for -, and with further settings; a
record of the run names ours. Where two libraries give one name to two methods, it is ComfyUI's.
"""

from .base import SOLVERS

ALIASES = {
    "dmd": "renoise",
    "dpm-2": "dpm2",
    "dpm-fast": "dpm-3s",
    "dpmpp-2m-sde": "sde-dpmpp-2:lower_order_final=never",
    "dpmpp-2m-sde-gpu": "sde-dpmpp-2:lower_order_final=never",
    "dpmpp-2m-sde-heun": "sde-dpmpp-2:kind=taylor,lower_order_final=never",
    "dpmpp-3m-sde": "sde-dpmpp-3:kind=taylor,lower_order_final=never",
    "dpmpp-3m-sde-gpu": "sde-dpmpp-3:kind=taylor,lower_order_final=never",
    "dpmpp-sde-gpu": "dpmpp-sde",
    "er-sde": "er-sde-3",
    "euler-a": "euler-ancestral",
    "exp-heun-2-x0": "res-2s:c2=1",
    "exp-heun-2-x0-sde": "seeds-2:r=1,solver_type=phi_2",
    "ipndm": "ipndm-4",
    "ping-pong": "renoise",
    "res-multistep": "dpmpp-2m:kind=taylor,lower_order_final=never",
    "uni-pc": "unipc-3:solver_type=bh1",
    "uni-pc-bh2": "unipc-3:solver_type=bh2",
}

for _name, _spec in ALIASES.items():
    SOLVERS.add_alias(_name, _spec)
