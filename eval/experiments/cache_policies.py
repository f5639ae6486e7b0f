"""The caches that `fewstep bench cache` and `fewstep calibrate` try where none are named."""

INTERVALS = (2, 3, 4, 5)

TAYLOR = tuple(
    f"taylorseer:interval={interval},order={order}{level}"
    for level in (",level=last-block", "")
    for interval in INTERVALS
    for order in (0, 1, 2)
)
GATED = (
    *(
        f"cg-taylor:threshold={threshold},lead={lead}"
        for lead in (1, 2, 3)
        for threshold in (0.02, 0.05, 0.1, 0.2)
    ),
    *(
        f"first-block:threshold={threshold},lead={lead},order={order}"
        for lead in (1, 2)
        for order in (0, 1)
        for threshold in (0.05, 0.1, 0.2)
    ),
)
FITTED = (
    *(f"teacache:threshold={threshold}" for threshold in (0.02, 0.05, 0.1, 0.2, 0.4)),
    *(f"magcache:threshold={threshold}" for threshold in (0.03, 0.06, 0.12, 0.24)),
)
MASKED = (
    "fixed-mask:compute=[0,1,2,3,5,7,10,13,16,19]",
    "fixed-mask:compute=[0,1,3,6,9,12,15,18,21,24,27,29]",
)
THEIRS = (
    *(
        f"diffusers-taylorseer:cache_interval={n},max_order=1,disable_cache_before_step=2"
        for n in (2, 3, 4, 6)
    ),
    *(f"diffusers-first-block:threshold={threshold}" for threshold in (0.05, 0.1, 0.2, 0.4)),
    *(
        f"cache-dit:residual_diff_threshold={threshold},Fn_compute_blocks=1,max_warmup_steps=3{end}"
        for end in ("", ",taylor=1")
        for threshold in (0.08, 0.16, 0.3, 0.6)
    ),
)
DEEP = (
    *(f"deepcache:interval={interval},branch={b}" for interval in (2, 3, 4, 5) for b in (0, 1, 2)),
    *(text for text in TAYLOR if "last-block" in text),
)
POLICIES = {
    "fashion-dit": (*TAYLOR, *GATED, *FITTED, *MASKED, *THEIRS),
    "fashion-unet": DEEP,
}
