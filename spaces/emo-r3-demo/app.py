"""The demo of `emo_r3.demo`, with the model that the variable EMO_R3_MODEL names, or with the miniature."""

import os

from emo_r3 import EmoR3Pipeline
from emo_r3.demo import create_demo, launch

demo = create_demo(EmoR3Pipeline.from_pretrained(os.environ.get("EMO_R3_MODEL")))

if __name__ == "__main__":
    launch(demo)
