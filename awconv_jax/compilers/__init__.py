"""The compilers of TPU and CUDA, which need no device, and what they say.

`topology` names chips and slices of them, `alone` has programs compiled in a
process of their own, as the compilers may crash; `tpu` and `cuda` read what
they dump, `exchanges` what chips exchange.
"""
