// An agent that pays for every token: it reserves, debits as it goes, follows advice, is cut off
// where the budget ends, and commits what it used.
//
//   BURSAR_TARGET=unix:/run/bursar/bursar.sock node agent.js ACCOUNT TOKENS
//
// BURSAR_TLS_CA names the authorities to trust, and turns TLS on; BURSAR_TOKEN is shown, if it is set.
import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { connect as dial } from 'node:net';

import { createClient } from '@connectrpc/connect';
import { createGrpcTransport } from '@connectrpc/connect-node';

import { LedgerService, Refusal_ReasonSchema, VerdictSchema, Verdict } from './gen/bursar/v1/ledger_pb.js';

const tokens = (value) => [{ unit: 'tokens', value }]; // amounts are BigInts
const named = (schema, number) => schema.value[number]?.name ?? number;

function connect({ BURSAR_TARGET: target, BURSAR_TLS_CA: ca, BURSAR_TOKEN: token }) {
  const nodeOptions = {};
  let baseUrl = `${ca ? 'https' : 'http'}://${target}`;
  if (target.startsWith('unix:')) {
    baseUrl = 'http://localhost'; // the :authority; any other would be refused
    nodeOptions.createConnection = () => dial(target.slice('unix:'.length));
  } else if (ca) {
    nodeOptions.ca = readFileSync(ca);
  }
  const show = (next) => (request) => {
    if (token) request.header.set('authorization', `Bearer ${token}`);
    return next(request);
  };
  const transport = createGrpcTransport({ baseUrl, nodeOptions, interceptors: [show] });
  return createClient(LedgerService, transport);
}

// One forward pass of your model.
async function model(temperature) {}

// Generates up to `most` tokens, one debit each; returns how many.
async function generate(ledger, reservation, most) {
  let used = 0n;
  let temperature = 0.8;
  let verdict = Verdict.OK;
  while (used < most) {
    // Ask first, work then. Counts are cumulative: "used so far", never "used since".
    const answer = await ledger.debit({ reservation, used: tokens(used + 1n) });
    if (answer.verdict === Verdict.STOP) {
      const reason = named(Refusal_ReasonSchema, answer.refusal.reason);
      console.log(`${used} tokens: ${named(VerdictSchema, answer.verdict)}, ${reason}`);
      break;
    }
    await model(temperature);
    used += 1n;
    if (answer.verdict === verdict) continue;
    verdict = answer.verdict;
    console.log(`${used} tokens: ${named(VerdictSchema, verdict)}`);
    if (answer.advice?.temperature !== undefined) {
      temperature = answer.advice.temperature;
      console.log(`temperature ${temperature}`);
    }
    if (answer.advice?.maxNewTokens !== undefined) {
      const left = used + answer.advice.maxNewTokens;
      most = left < most ? left : most;
      console.log(`at most ${most} tokens`);
    }
  }
  return used;
}

async function main(account, wishText) {
  if (wishText === undefined || !process.env.BURSAR_TARGET) {
    throw new Error('usage: BURSAR_TARGET=ADDRESS node agent.js ACCOUNT TOKENS');
  }
  const wish = BigInt(wishText);
  const ledger = connect(process.env);
  const { verdict, refusal, reservation } = await ledger.reserve({
    account,
    idempotencyKey: randomUUID(), // a repeat of this request reserves nothing more
    amounts: tokens(wish),
    minAcceptable: tokens(1n), // less than the wish is better than nothing
  });
  if (verdict === Verdict.STOP) { // an answer, not an error
    throw new Error(`refused by ${refusal.account}: ${named(Refusal_ReasonSchema, refusal.reason)}`);
  }
  console.log(`reserved ${reservation.granted[0].value} of ${wish} tokens`);
  const used = await generate(ledger, reservation.id, wish);
  await ledger.commit({ reservation: reservation.id, actual: tokens(used) });
  console.log(`spent ${used} tokens`);
}

main(...process.argv.slice(2)).then(
  () => process.exit(), // the connection would be kept open
  (error) => {
    console.error(error.message);
    process.exit(1);
  },
);
