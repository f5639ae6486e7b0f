# %% [markdown]
# # Tuning: the best four evaluations
#
# A solver and a grid that are good on average need not be the best for your network. `tune` draws
# a converged reference, tries named solvers and grids, searches a table of times and weights, and
# judges all of them on noises that chose nothing. The few candidates here take a minute;
# `budget="5m"` finds more.

# %%
import warnings

import fewstep

NETWORK = "fashion-unet"
NFE = 4
SEARCH = {"budget": "candidates=16", "noises": "64,32,64", "teacher_nfe": 30}
SEEDS = range(1000, 1016)
CONVERGED = {"solver": "unipc-3", "nfe": 50}

report = fewstep.tune(NETWORK, nfe=NFE, out="tuned.json", **SEARCH)

# %% [markdown]
# ## What was found
#
# The report holds everything that was judged, and says in words what was found.

# %%
(written,) = report.plans
print(f"{len(report.points)} settings were judged in {report.seconds:.0f} s")
print(f"chosen: {written.plan.point.name}")
for verdict in report.verdicts:
    print(f"- {verdict}")

# %% [markdown]
# ## Does it hold?
#
# The plan beside the default, on seeds that the search has not seen, and the default once more
# with twice the evaluations.

# %%
settings = {
    "default": {"nfe": NFE},
    "plan": {"plan": "tuned.json"},
    "twice as many": {"nfe": 2 * NFE},
}
with warnings.catch_warnings():  # the plan was timed for one image at once
    warnings.filterwarnings("ignore", message="this plan was measured")
    comparison = fewstep.compare(NETWORK, settings, seeds=SEEDS, converged=CONVERGED)
print(comparison.table())
comparison.save("tuned.png")

# %%
default, plan, _ = (run.distance.value for run in comparison.runs)
print(f"the plan leaves {plan / default:.0%} of the default's distance to the converged run")
assert plan < default
