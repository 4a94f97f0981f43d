"""All that a plain user of the openai client does. Usage: python openai_client.py BASE_URL MODEL"""

import sys

import openai

base_url, model = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key="none", timeout=60, max_retries=0)
messages = [{"role": "user", "content": "Which berth is free?"}]


def check(condition, what):
    if not condition:
        sys.exit(f"not so: {what}")


listed = [entry.id for entry in client.models.list()]
check(model in listed, f"{model} is listed among {listed}")
check(client.models.retrieve(model).id == model, "the model can be retrieved")

plain = client.chat.completions.create(model=model, messages=messages, max_tokens=5, temperature=0)
check(plain.choices[0].message.content is not None, "a plain chat has text")
check(plain.choices[0].finish_reason in ("stop", "length"), "it says why it ended")
check(plain.usage.completion_tokens in range(1, 6), f"it has usage: {plain.usage}")

chunks = list(
    client.chat.completions.create(
        model=model, messages=messages, max_tokens=5, temperature=0, stream=True, stream_options={"include_usage": True}
    )
)
text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
check(text == plain.choices[0].message.content, f"streamed text is the plain one: {text!r} {plain}")
check(chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == plain.usage.completion_tokens, "usage ends it")
check([c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("stop", "length"), "a finish reason is given")

chunks = list(client.chat.completions.create(model=model, messages=messages, max_tokens=3, stream=True))
check(all(chunk.choices for chunk in chunks), "who does not ask for usage gets no chunk without choices")
check(all(chunk.usage is None for chunk in chunks), "nor usage")

completion = client.completions.create(model=model, prompt="Berth", max_tokens=3, temperature=0)
check(completion.choices[0].text is not None and completion.usage.completion_tokens in range(1, 4), "a completion")
pieces = [c.choices[0].text for c in client.completions.create(model=model, prompt="Berth", max_tokens=3, stream=True)]
check(len(pieces) >= 1, "a streamed completion")

vectors = client.embeddings.create(model=model, input=["a ship", "a berth"], encoding_format="float")
check(len(vectors.data) == 2 and len(vectors.data[0].embedding) == 64, "embeddings as numbers")
packed = client.embeddings.create(model=model, input="a ship")
near = all(abs(a - b) < 1e-3 for a, b in zip(packed.data[0].embedding, vectors.data[0].embedding))
check(near, "the client's own base64 gives the same vector")
check(vectors.usage.prompt_tokens > 0, "embeddings have usage")

try:
    client.chat.completions.create(model="no-such-model", messages=messages)
    sys.exit("an unknown model was answered")
except openai.NotFoundError as error:
    check(error.code == "model_not_found" and "no-such-model" in error.message, f"it says which: {error}")

print("all answered")
