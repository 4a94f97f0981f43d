// What the openai and anthropic clients for Node see of one endpoint, scenario by scenario, as JSON lines.
//
// Usage: node conformance.cjs BASE_URL MODEL
//
// As conformance.py: run against an engine itself and against Berth in front of it, both must print the same.

const OpenAI = require("openai").default;
const Anthropic = require("@anthropic-ai/sdk").default;

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${baseURL}/v1`, apiKey: "none", timeout: 60_000, maxRetries: 0 });
const claude = new Anthropic({ baseURL, apiKey: "none", timeout: 60_000, maxRetries: 0 });

const messages = [{ role: "user", content: "Which berth is free?" }];
const own = { cache_prompt: false, chat_template_kwargs: { enable_thinking: false } };
const same = { temperature: 0, seed: 7, ...own };
const usage = { stream: true, stream_options: { include_usage: true } };
const tool = {
  type: "function",
  function: {
    name: "assign",
    parameters: { type: "object", properties: { berth: { enum: [1, 2] } }, required: ["berth"] },
  },
};
// Random weights call no tool by themselves: they are made to begin with `{`, whose byte is this token of the tiny model, and
// from there on the grammar has the rest be a call.
const forced = { tool_choice: "required", logit_bias: { 126: 100 }, max_tokens: 200 };
const schema = {
  type: "json_schema",
  json_schema: {
    name: "berth",
    strict: true,
    schema: { type: "object", properties: { free: { type: "boolean" } }, required: ["free"] },
  },
};

const assign = {
  tools: [{ name: "assign", input_schema: tool.function.parameters }],
  tool_choice: { type: "any" },
  max_tokens: 200,
};
// One red pixel.
const pixel =
  "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==";

const differs = new Set([
  "id", "created", "created_at", "completed_at", "timings", "request_id", "_request_id", "call_id", "item_id",
  "signature", "cached_tokens", "cache_read_input_tokens", "cache_creation_input_tokens",
]);

// Without what differs between any two answers.
function plain(value) {
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value === "number") return Math.round(value * 1e4) / 1e4;
  if (value === null || typeof value !== "object") return value;
  const keys = Object.keys(value).filter((key) => !differs.has(key)).sort();
  return Object.fromEntries(keys.map((key) => [key, plain(value[key])]));
}

// A stream's text and what else it says; how tokens were cut into chunks is the engine's own affair.
async function text(stream) {
  const said = { text: "", reasoning: "", calls: {}, logprobs: [], finish: [], usage: [], withoutChoices: 0 };
  for await (const chunk of await stream) {
    if (chunk.choices.length === 0) said.withoutChoices += 1;
    if (chunk.usage) said.usage.push(plain(chunk.usage));
    for (const choice of chunk.choices) {
      said.text += choice.delta?.content ?? choice.text ?? "";
      said.reasoning += choice.delta?.reasoning_content ?? "";
      for (const call of choice.delta?.tool_calls ?? []) {
        const before = said.calls[call.index] ?? "";
        said.calls[call.index] = before + (call.function.name ?? "") + (call.function.arguments ?? "");
      }
      if (choice.logprobs) said.logprobs.push(plain(choice.logprobs));
      if (choice.finish_reason) said.finish.push(choice.finish_reason);
    }
  }
  return said;
}

async function events(stream) {
  const said = { kinds: [], text: "" };
  for await (const event of await stream) {
    if (said.kinds.at(-1) !== event.type) said.kinds.push(event.type);
    const { delta } = event;
    said.text += typeof delta === "string" ? delta : (delta?.text ?? delta?.partial_json ?? "");
  }
  return said;
}

const chat = (more) => client.chat.completions.create({ model, messages, max_tokens: 12, ...same, ...more });
const complete = (more) => client.completions.create({ model, prompt: "Berth", max_tokens: 5, ...same, ...more });
const respond = (more) =>
  client.responses.create({ model, input: "Which berth?", max_output_tokens: 12, temperature: 0, ...more });
const message = (more) => claude.messages.create({ model, messages, max_tokens: 12, temperature: 0, ...own, ...more });

const scenarios = {
  "chat": () => chat(),
  "chat streamed": () => text(chat({ stream: true })),
  "chat streamed with usage": () => text(chat(usage)),
  "reasoning streamed": () => text(chat({ ...usage, chat_template_kwargs: { enable_thinking: true } })),
  "stop": () => chat({ stop: ["a", "e"], max_tokens: 64 }),
  "stop streamed": () => text(chat({ stop: ["a", "e"], max_tokens: 64, ...usage })),
  "several choices": () => chat({ n: 2 }),
  "several choices streamed": () => text(chat({ n: 2, ...usage })),
  "logprobs": () => chat({ logprobs: true, top_logprobs: 2, max_tokens: 3 }),
  "logprobs streamed": () => text(chat({ logprobs: true, top_logprobs: 2, max_tokens: 3, stream: true })),
  "a tool that must be called": () => chat({ tools: [tool], ...forced }),
  "a tool streamed": () => text(chat({ tools: [tool], ...forced, ...usage })),
  "a tool that may be called": () => chat({ tools: [tool] }),
  "a JSON schema": () => chat({ response_format: schema, max_tokens: 64 }),
  "a JSON schema streamed": () => text(chat({ response_format: schema, max_tokens: 64, stream: true })),
  "an image": () => chat({ messages: [{ role: "user", content: [{ type: "image_url", image_url: { url: pixel } }] }] }),
  "a wrong parameter": () => chat({ temperature: "hot" }),
  "a wrong parameter streamed": () => text(chat({ temperature: "hot", stream: true })),
  "a completion": () => complete(),
  "a completion streamed": () => text(complete({ stream: true })),
  "embeddings": () => client.embeddings.create({ model, input: ["a ship", "a berth"] }),
  "embeddings as numbers": () => client.embeddings.create({ model, input: "a ship", encoding_format: "float" }),
  "a response": () => respond(),
  "a response streamed": () => events(respond({ stream: true })),
  "a message": () => message(),
  "a message streamed": () => events(message({ stream: true })),
  // What of its input was cached it does not count.
  "a message with a tool": async () => (await message(assign)).content,
  "a message with a tool streamed": () => events(message({ ...assign, stream: true })),
  "a message with a wrong parameter": () => message({ temperature: "hot" }),
  "tokens counted": () => claude.messages.countTokens({ model, messages }),
};

(async () => {
  for (const [name, scenario] of Object.entries(scenarios)) {
    let seen;
    try {
      seen = plain(await scenario());
    } catch (error) {
      // An engine's words; their shape is Anthropic's through Berth alone.
      const anthropic = error instanceof Anthropic.APIError;
      seen = anthropic ? { status: error.status, message: error.apiMessage } : { name: error.constructor.name, status: error.status, message: error.message, body: plain(error.error) };
    }
    console.log(JSON.stringify([name, seen]));
  }
})();
