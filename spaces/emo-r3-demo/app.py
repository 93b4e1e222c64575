"""The demo of `emo_r3.demo`, with the model that the variable EMO_R3_MODEL names, or with the miniature.

It runs on a CPU, on a GPU of its own, and on ZeroGPU, which lends one for the seconds of an answer.
"""

import os

try:
    from spaces import GPU  # on ZeroGPU, it has to come before torch
except ImportError:
    on_gpu = None
else:
    on_gpu = GPU(duration=int(os.environ.get("EMO_R3_GPU_SECONDS", "60")))

from emo_r3 import EmoR3Pipeline
from emo_r3.demo import create_demo, launch

demo = create_demo(EmoR3Pipeline.from_pretrained(os.environ.get("EMO_R3_MODEL")), on_gpu)

if __name__ == "__main__":
    launch(demo)
