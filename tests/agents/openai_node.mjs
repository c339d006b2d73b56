// openai-node against the gateway: one JSON line per check. Arguments: base URL, key, model, JSON of the own call.
import OpenAI from "openai";

const [baseURL, apiKey, model, ownJson] = process.argv.slice(2);
const own = JSON.parse(ownJson);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 300_000 });
const asked = { model, temperature: 0, max_tokens: 200, thinking: { type: "disabled" } };
const hello = [{ role: "user", content: "Hello" }];
const person = {
  type: "object",
  properties: { name: { type: "string", maxLength: 8 }, age: { type: "integer", minimum: 0, maximum: 99 } },
  required: ["name", "age"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "register", parameters: person } }];

function isPerson(text) {
  const found = JSON.parse(text);
  return Object.keys(found).sort().join() === "age,name" && found.name.length <= 8 && found.age >= 0 && found.age <= 99;
}

function isRegister(message) {
  const call = message.tool_calls[0];
  return call.type === "function" && call.function.name === "register" && isPerson(call.function.arguments);
}

const checks = {
  async chat() {
    const answer = await client.chat.completions.create({ ...asked, messages: hello });
    return answer.choices[0].message.content.toLowerCase().includes("help");
  },
  async stream() {
    const stream = client.chat.completions.stream({ ...asked, messages: hello });
    let pieces = 0;
    stream.on("content", () => (pieces += 1));
    const text = await stream.finalContent();
    return pieces > 3 && text.toLowerCase().includes("help");
  },
  async tools_forced() {
    const body = { ...asked, messages: hello, tools, parallel_tool_calls: false, tool_choice: "required" };
    const answer = await client.chat.completions.create(body);
    return isRegister(answer.choices[0].message);
  },
  async tools_forced_streamed() {
    const choice = { type: "function", function: { name: "register" } };
    const body = { ...asked, messages: hello, tools, parallel_tool_calls: false, tool_choice: choice };
    return isRegister(await client.chat.completions.stream(body).finalMessage());
  },
  async tools_auto() {
    const body = { ...asked, messages: own.messages, tools: own.tools };
    const [call, ...more] = (await client.chat.completions.create(body)).choices[0].message.tool_calls;
    const isSame = Object.entries(own.arguments).every(
      ([name, value]) => JSON.stringify(JSON.parse(call.function.arguments)[name]) === JSON.stringify(value),
    );
    return more.length === 0 && call.function.name === own.name && isSame;
  },
  async structured() {
    const form = { type: "json_schema", json_schema: { name: "person", schema: person, strict: true } };
    const answer = await client.chat.completions.create({ ...asked, messages: hello, response_format: form });
    return isPerson(answer.choices[0].message.content);
  },
  async responses() {
    const answer = await client.responses.create({
      model, input: "Hello", max_output_tokens: 60, temperature: 0, reasoning: { effort: "none" },
    });
    return answer.output_text.toLowerCase().includes("help");
  },
};

for (const [check, run] of Object.entries(checks)) {
  const started = performance.now();
  let ok = false, why = "";
  try {
    ok = await run();
  } catch (error) {
    why = String(error).slice(0, 300);
  }
  console.log(JSON.stringify({ check, ok, seconds: Math.round(performance.now() - started) / 1000, why }));
}
