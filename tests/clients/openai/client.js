// OpenAI's own client against the proxy: nothing but its base URL is changed.
//
// `node client.js MODE BASE_URL`: `stream`, `whole`, `tools` or `responses`. Prints one line of JSON:
// what it saw, or how the client told that it was refused.
'use strict';

const OpenAI = require('openai');

// `ignore_eos` is llama.cpp's own: the tests' random model shall not end by chance.
const CALL = {
  model: 'm',
  messages: [{ role: 'user', content: 'hello' }],
  max_tokens: 500,
  ignore_eos: true,
};
const FUNCTION = { name: 'look_up', parameters: { type: 'object', properties: {} } };

const modes = {
  async stream(client) {
    const asked = { ...CALL, stream: true, stream_options: { include_usage: true } };
    const seen = { text: '', finish: null, usage: null, afterwards: 0 };
    for await (const chunk of await client.chat.completions.create(asked)) {
      if (seen.usage !== null) seen.afterwards += 1;
      seen.usage = chunk.usage ?? seen.usage;
      seen.text += chunk.choices[0]?.delta.content ?? '';
      seen.finish = chunk.choices[0]?.finish_reason ?? seen.finish;
    }
    return seen;
  },

  async whole(client) {
    const answer = await client.chat.completions.create(CALL);
    const [choice] = answer.choices;
    return { text: choice.message.content, finish: choice.finish_reason, usage: answer.usage };
  },

  async tools(client) {
    const tools = [{ type: 'function', function: FUNCTION }];
    const stream = client.chat.completions.stream({ ...CALL, tools });
    const [call] = (await stream.finalMessage()).tool_calls;
    return { name: call.function.name, arguments: call.function.arguments };
  },

  async responses(client) {
    const seen = { text: '', status: null, usage: null };
    const asked = { model: 'm', input: 'hello', max_output_tokens: 500, stream: true };
    for await (const event of await client.responses.create(asked)) {
      if (event.type === 'response.output_text.delta') seen.text += event.delta;
      seen.status = event.response?.status ?? seen.status;
      seen.usage = event.response?.usage ?? seen.usage;
    }
    return seen;
  },
};

async function main(mode, baseURL) {
  let requests = 0;
  const counted = (...request) => {
    requests += 1;
    return fetch(...request);
  };
  const client = new OpenAI({ baseURL, apiKey: 'of-the-client', maxRetries: 2, fetch: counted });
  const told = (error) => ({
    refused: error.constructor.name,
    status: error.status,
    code: error.code,
    type: error.type,
    message: error.message,
    account: error.headers?.get('x-budget-account'),
  });
  const seen = await modes[mode](client).catch(told);
  console.log(JSON.stringify({ ...seen, requests }));
}

main(...process.argv.slice(2));
