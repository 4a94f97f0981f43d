"""What the openai and anthropic clients make of an engine that is slow, refuses, breaks off or dies.

Usage: python faults.py BASE_URL SIMULATED LLAMA PID: a model on the simulator, one on a real llama-server, and the process
of that one's engine, which is killed in the end.
"""

import os
import signal
import sys

import anthropic
import openai

base_url, simulated, llama, pid = sys.argv[1:]
client = openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", timeout=60, max_retries=0)
claude = anthropic.Anthropic(base_url=base_url, api_key="none", timeout=60, max_retries=0)
messages = [{"role": "user", "content": "Which berth is free?"}]


def check(condition, what):
    if not condition:
        sys.exit(f"not so: {what}")


def chat(sim, **more):
    return client.chat.completions.create(model=simulated, messages=messages, extra_body={"sim": sim}, **more)


def said(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def fails(kind, what, action, **facts):
    """Expects an error of the client's own kind, with these of its fields."""
    try:
        action()
    except kind as error:
        for name, value in facts.items():
            check(getattr(error, name) == value, f"{what}: {name} is {getattr(error, name)!r}")
        return error
    sys.exit(f"not so: {what} is an error")


slow = {"first_token_ms": 2500, "tokens": 4}
check(chat(slow).choices[0].message.content, "a slow plain answer comes")
chunks = list(chat(slow, stream=True))
check(said(chunks) and all(chunk.choices for chunk in chunks), "a slow stream comes, and comments are no chunks")
check([c.choices[0].finish_reason for c in chunks][-1] == "stop", "it says why it ended")
chunks = list(chat(slow, stream=True, stream_options={"include_usage": True}))
check(not chunks[0].choices and said(chunks), "who takes chunks without choices gets some while it waits")
check(chunks[-1].usage.completion_tokens == 4 and not chunks[-1].choices, "and the usage at the end")
with client.chat.completions.with_streaming_response.create(
    model=simulated, messages=messages, stream=True, extra_body={"sim": slow}
) as response:
    lines = list(response.iter_lines())
check(any(line.startswith(": berth ") for line in lines), f"heartbeats are comments: {lines}")
check(not any(line.startswith("id:") for line in lines), "no event has an id")

for broken in ({"cut_after_tokens": 3, "tokens": 50}, {"crash_after_tokens": 3, "tokens": 50}):
    seen = []

    def read():
        for chunk in chat(broken, stream=True):
            seen.append(chunk)

    fails(openai.APIError, f"a stream that breaks off ({broken})", read)
    check(said(seen), "what came before is not lost")
fails(openai.InternalServerError, "an answer that breaks off", lambda: chat({"cut_after_tokens": 3, "tokens": 50}))

fails(openai.RateLimitError, "an engine's own 429", lambda: chat({"status": 429}), status_code=429)
fails(openai.InternalServerError, "an engine's own 500", lambda: chat({"status": 500}), status_code=500)
fails(openai.BadRequestError, "an engine's own 400", lambda: chat({"status": 400}, stream=True), status_code=400)
unknown = fails(
    openai.NotFoundError,
    "an unknown model",
    lambda: client.chat.completions.create(model="none", messages=messages),
    code="model_not_found",
)
check("none" in unknown.message, unknown.message)
error = fails(
    anthropic.NotFoundError,
    "an unknown model",
    lambda: claude.messages.create(model="none", max_tokens=1, messages=messages),
)
check(error.body["error"]["type"] == "not_found_error", error.body)
fails(openai.APIStatusError, "a route that the engine lacks", lambda: client.moderations.create(model=llama, input="x"), status_code=501)

# The engine dies while it answers two clients. Without chance this model's noise goes round in circles for ever.
endless = {"max_tokens": 30_000, "stream": True, "extra_body": {"ignore_eos": True, "temperature": 0}}
other = client.chat.completions.create(model=llama, messages=messages, **endless)
next(iter(other))
with claude.messages.create(model=llama, messages=messages, **endless) as stream:
    next(iter(stream))
    os.kill(int(pid), signal.SIGKILL)
    fails(anthropic.APIError, "a message whose engine dies", lambda: list(stream))
fails(openai.APIError, "a chat whose engine dies", lambda: list(other))
again = client.chat.completions.create(model=llama, messages=messages, max_tokens=3)
check(again.usage.completion_tokens > 0, "the next request gets a new engine")

print("all told")
