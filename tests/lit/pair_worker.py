"""One of the processes of ``two_processes.Pair``: runs a command a line of its input, says how each ended."""

from __future__ import annotations

import json
import sys

import tiny_runs

answers = sys.stdout
for line in sys.stdin:
    print(json.dumps(tiny_runs.d2v_command(*json.loads(line))), file=answers, flush=True)
