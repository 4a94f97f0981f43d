"""A client whose time-out is shorter than a cold start. Usage: python short_patience.py BASE_URL MODEL SECONDS

It knows nothing of Berth: its own retries are all it has.
"""

import sys
import time

import openai

base_url, model, patience = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key="none", timeout=float(patience), max_retries=8)
began = time.monotonic()
raw = client.chat.completions.with_raw_response.create(
    model=model, messages=[{"role": "user", "content": "Which berth is free?"}], max_tokens=3
)
answer = raw.parse()
if not answer.choices[0].message.content:
    sys.exit(f"no text: {answer}")
print(f"retries={raw.retries_taken} job={raw.headers['x-berth-job']} seconds={time.monotonic() - began:.1f}")
