// What the openai and anthropic clients for Node make of an engine that is slow, refuses, breaks off or dies.
//
// Usage: node faults.cjs BASE_URL SIMULATED LLAMA PID, as faults.py.

const OpenAI = require("openai").default;
const Anthropic = require("@anthropic-ai/sdk").default;

const [base, simulated, llama, pid] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: "none", timeout: 60_000, maxRetries: 0 });
const claude = new Anthropic({ baseURL: base, apiKey: "none", timeout: 60_000, maxRetries: 0 });
const messages = [{ role: "user", content: "Which berth is free?" }];

function check(condition, what) {
  if (condition) return;
  console.log(`not so: ${what}`);
  process.exit(1);
}

const chat = (sim, more) => client.chat.completions.create({ model: simulated, messages, sim, ...more });

async function read(stream) {
  const chunks = [];
  try {
    for await (const chunk of await stream) chunks.push(chunk);
    return { chunks };
  } catch (error) {
    return { chunks, error };
  }
}

const said = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");

async function fails(kind, what, action, facts = {}) {
  try {
    await action();
  } catch (error) {
    check(error instanceof kind, `${what}: ${error}`);
    for (const [name, value] of Object.entries(facts)) check(error[name] === value, `${what}: ${name} is ${error[name]}`);
    return error;
  }
  check(false, `${what} is an error`);
}

(async () => {
  const slow = { first_token_ms: 2500, tokens: 4 };
  check((await chat(slow)).choices[0].message.content, "a slow plain answer comes");
  let seen = await read(chat(slow, { stream: true }));
  check(!seen.error && said(seen.chunks), `a slow stream comes: ${seen.error}`);
  check(seen.chunks.every((chunk) => chunk.choices.length > 0), "comments are no chunks");
  seen = await read(chat(slow, { stream: true, stream_options: { include_usage: true } }));
  check(!seen.error && seen.chunks[0].choices.length === 0, "who takes chunks without choices gets some while it waits");
  check(seen.chunks.at(-1).usage?.completion_tokens === 4, "and the usage at the end");

  for (const broken of [{ cut_after_tokens: 3, tokens: 50 }, { crash_after_tokens: 3, tokens: 50 }]) {
    seen = await read(chat(broken, { stream: true }));
    check(seen.error instanceof OpenAI.APIError, `a stream that breaks off is an error: ${seen.error}`);
    check(said(seen.chunks), "what came before is not lost");
  }
  await fails(OpenAI.InternalServerError, "an answer that breaks off", () => chat({ cut_after_tokens: 3, tokens: 50 }));
  await fails(OpenAI.RateLimitError, "an engine's own 429", () => chat({ status: 429 }), { status: 429 });
  await fails(OpenAI.InternalServerError, "an engine's own 500", () => chat({ status: 500 }), { status: 500 });
  await fails(OpenAI.BadRequestError, "an engine's own 400", () => chat({ status: 400 }, { stream: true }), { status: 400 });
  await fails(OpenAI.NotFoundError, "an unknown model", () => client.chat.completions.create({ model: "none", messages }), {
    code: "model_not_found",
  });
  const unknown = () => claude.messages.create({ model: "none", max_tokens: 1, messages });
  const error = await fails(Anthropic.NotFoundError, "an unknown model", unknown);
  check(error.error.error.type === "not_found_error", JSON.stringify(error.error));

  // Without chance this model's noise goes round in circles for ever.
  const endless = { model: llama, messages, max_tokens: 30_000, ignore_eos: true, temperature: 0, stream: true };
  const [one, other] = [await client.chat.completions.create(endless), await claude.messages.create(endless)];
  const first = one[Symbol.asyncIterator]();
  const second = other[Symbol.asyncIterator]();
  await Promise.all([first.next(), second.next()]);
  process.kill(Number(pid), "SIGKILL");
  const drained = async (iterator) => {
    while (!(await iterator.next()).done);
  };
  await fails(OpenAI.APIError, "a chat whose engine dies", () => drained(first));
  await fails(Anthropic.APIError, "a message whose engine dies", () => drained(second));
  const again = await client.chat.completions.create({ model: llama, messages, max_tokens: 3 });
  check(again.usage.completion_tokens > 0, "the next request gets a new engine");
  console.log("all told");
})();
