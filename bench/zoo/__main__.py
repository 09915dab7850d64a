"""The whole zoo from nothing: `python -m bench.zoo`. What is already there is not made again."""

import os

from bench.zoo import attacked, controls, make

os.environ.setdefault("HF_HUB_OFFLINE", "1")
make.base()
make.second()
attacked.attack_all()
controls.make_all()
