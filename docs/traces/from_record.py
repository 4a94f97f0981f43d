#!/usr/bin/env python3
"""Writes the trace of what a scheduler recorded ([scheduler] record) to standard output, for `berth simulate`.

    from_record.py scheduler.jsonl > trace.csv

Requests that never got an answer are left out: their tokens are not known. A request without a session is one of its own.
Names of sessions become numbers.
"""
import json
import sys

jobs, rows, sessions = {}, [], {}
for line in open(sys.argv[1], encoding="utf-8"):
    event = json.loads(line).get("event")
    if not isinstance(event, dict):
        continue
    (kind, what), *_ = event.items()
    if kind in ("JobSubmitted", "JobStarted"):
        job = what["job"] if kind == "JobStarted" else what
        jobs[job["id"]] = job
    elif kind == "AttemptEnded" and what["end"] == "Completed":
        job, usage = jobs.pop(what["job"], None), what["usage"]
        if job and usage.get("completion_tokens") is not None:
            rows.append((job["arrival"], job, usage))

rows.sort(key=lambda row: row[0])
print("arrival_s,session,model,prompt_tokens,output_tokens")
for arrival, job, usage in rows:
    name = job["session"] or job["id"]
    session = sessions.setdefault(name, f"s{len(sessions)}")
    tokens = f"{usage.get('prompt_tokens') or 0},{usage['completion_tokens']}"
    print(f"{(arrival - rows[0][0]) / 1000:.3f},{session},{job['model']},{tokens}")
