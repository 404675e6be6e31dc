"""Speed and memory of resizing, relative to unavoidable costs: a copy, a load, an import.

    python benchmarks/speed/run.py kernel        # the low-pass of one stack against memcpy, pywt and ptwt
    python benchmarks/speed/run.py end-to-end    # from_pretrained against loading source and target
    python benchmarks/speed/run.py scale         # streaming checkpoints of 0.1 to 7 billion parameters
    python benchmarks/speed/run.py imports       # what importing costs over torch and transformers
    python benchmarks/speed/run.py all           # these four; --quick for small sizes and one round
    python benchmarks/speed/run.py gpu           # on a GPU: bandwidth, peak memory, equality with the CPU
    python benchmarks/speed/run.py table         # redraw the tables from the JSON

Every case runs in a fresh process, several times; results go to benchmarks/results/speed-PART.json after every
case, with a table (.md) beside them. Exit status: 0 all ran, 1 a result was wrong or a case failed, 2 a mistake in
the call, 130 interrupted (--resume continues).
"""

import sys

from speed_cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], __doc__))
