from .plan import plan


def tiling_for(work, device, tensor):
    return plan(work, device)
