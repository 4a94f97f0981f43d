"""An API key as a user of the openai client meets it. Usage: python openai_keys.py BASE_URL MODEL KEY REQUESTS"""

import sys
import urllib.error
import urllib.request

import openai

base_url, model, key, requests = sys.argv[1:]
messages = [{"role": "user", "content": "Which berth is free?"}]


def check(condition, what):
    if not condition:
        sys.exit(f"not so: {what}")


def client(api_key):
    return openai.OpenAI(base_url=base_url, api_key=api_key, timeout=60, max_retries=0)


try:
    urllib.request.urlopen(f"{base_url}/models")
    sys.exit("models were listed without a key")
except urllib.error.HTTPError as error:
    check(error.code == 401 and error.headers["WWW-Authenticate"].startswith("Bearer"), f"401 without a key: {error}")

for stream in (False, True):
    try:
        client("none").chat.completions.create(model=model, messages=messages, stream=stream)
        sys.exit("a wrong key was answered")
    except openai.AuthenticationError as error:
        check(error.code == "invalid_api_key" and error.status_code == 401, f"a wrong key is named as such: {error}")

known = client(key)
check([entry.id for entry in known.models.list()] == [model], "the right key lists the models")
for left in reversed(range(int(requests))):
    answer = known.chat.completions.with_raw_response.create(model=model, messages=messages, max_tokens=2)
    check(answer.parse().choices[0].message.content is not None, "the right key is answered")
    told = answer.headers["x-ratelimit-remaining-requests"]
    check(told == str(left), f"{left} requests are left, it says {told}")

try:
    known.chat.completions.create(model=model, messages=messages, max_tokens=2)
    sys.exit("a request above the limit was answered")
except openai.RateLimitError as error:
    check(error.code == "rate_limit_exceeded" and error.param == "requests_per_minute", f"it says which limit: {error}")
    wait = int(error.response.headers["retry-after"])
    check(1 <= wait <= 60, f"it says when to come back: {wait}")

print("all as it should be")
