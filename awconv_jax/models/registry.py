"""All networks by name; a detector has one of them as its backbone."""

from awconv_jax.models import mobilenet_v2, resnet, wide_resnet

# A class, and what the name decides.
MODELS = {**resnet.MODELS, **wide_resnet.MODELS, **mobilenet_v2.MODELS}
