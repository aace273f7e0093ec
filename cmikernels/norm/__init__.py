"""The kernels of `norm_act_pool` and their derivatives.

`operations.py` has what autograd sees and `compiled.py` what compilers see. `cpu.py` calls the CPU
kernel, `launch.py` the Triton kernels of `orders.py`, whose tiles `plan.py` chooses.
"""
