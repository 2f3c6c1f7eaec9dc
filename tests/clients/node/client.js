// A client of Bursar in Node, on @grpc/grpc-js and the proto itself.
//
//   node client.js PROTO meter TARGET ACCOUNT WISH         debits on a Meter stream until stopped
//   node client.js PROTO watch TARGET ACCOUNT WISH COUNT   debits COUNT, then waits to be stopped
//
// PROTO is the folder of Bursar's proto files. Prints what it saw as one line of JSON. Amounts are
// 64-bit integers: BigInts here and strings in messages, for a number would lose digits.
'use strict';

const { promisify } = require('node:util');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const PATIENCE_MS = 30_000;

const tokens = (value) => [{ unit: 'tokens', value: value.toString() }];

// Calls by name, as promises.
class Ledger {
  constructor(protoFolder, target) {
    const options = { includeDirs: [protoFolder], longs: String, enums: String, defaults: true };
    const definition = loader.loadSync('bursar/v1/ledger.proto', options);
    const { LedgerService } = grpc.loadPackageDefinition(definition).bursar.v1;
    this.stub = new LedgerService(target, grpc.credentials.createInsecure());
    this.deadline = new Date(Date.now() + PATIENCE_MS);
  }

  call(method, request) {
    const stub = this.stub[method].bind(this.stub);
    return promisify(stub)(request, new grpc.Metadata(), { deadline: this.deadline });
  }
}

// One reservation on a Meter stream.
class Meter {
  constructor(ledger, reservation) {
    this.reservation = reservation;
    this.stream = ledger.stub.Meter(new grpc.Metadata(), { deadline: ledger.deadline });
    this.responses = this.stream[Symbol.asyncIterator]();
  }

  // Counts are cumulative: "used so far".
  debit(used) {
    this.stream.write({ debits: [{ reservation: this.reservation, used: tokens(used) }] });
    return this.receive(false);
  }

  // The next answer, asked for or not. News that come before an asked answer may be left out: that
  // answer holds the newest verdict.
  async receive(unasked) {
    for (;;) {
      const { value, done } = await this.responses.next();
      if (done) throw new Error('the stream has ended');
      if (value.unasked === unasked) return value.answers[0];
    }
  }

  end() {
    this.stream.end();
  }
}

// Raises the hold; returns why not, if it could not.
async function extend(ledger, hold, wish) {
  const answer = await ledger.call('Extend', {
    reservation: hold.id,
    granted: tokens(hold.tokens + wish),
    minAcceptable: tokens(hold.tokens + 1n),
  });
  if (answer.verdict === 'VERDICT_STOP') return answer.refusal;
  hold.tokens = BigInt(answer.reservation.granted[0].value);
  return null;
}

// Meters until it is stopped; once `pause` tokens are used it only listens.
async function spend(ledger, meter, hold, wish, pause) {
  let used = 0n;
  for (;;) {
    const waits = used === pause;
    // Ask first, work then: what is refused was not used.
    const answer = waits ? await meter.receive(true) : await meter.debit(used + 1n);
    if (answer.verdict !== 'VERDICT_STOP') {
      if (!waits) used += 1n;
      continue;
    }
    let refusal = answer.refusal;
    if (refusal.reason === 'REASON_HOLD_EXHAUSTED') {
      refusal = await extend(ledger, hold, wish);
      if (refusal === null) continue;
    }
    return { used, verdict: answer.verdict, refusal, unasked: waits };
  }
}

// The ErrorInfo of a failed call.
function explain(error) {
  const types = loader.loadSync('error_info.proto', { includeDirs: [__dirname] });
  const [bytes] = error.metadata.get('grpc-status-details-bin');
  const { details } = types['google.rpc.Status'].deserialize(bytes);
  const found = details.find((detail) => detail.type_url.endsWith('/google.rpc.ErrorInfo'));
  const { reason, domain } = types['google.rpc.ErrorInfo'].deserialize(found.value);
  return { code: error.code, reason, domain };
}

async function main(protoFolder, mode, target, account, wishText, pauseText) {
  const wish = BigInt(wishText);
  const pause = mode === 'watch' ? BigInt(pauseText) : -1n;
  const ledger = new Ledger(protoFolder, target);
  const held = await ledger.call('Reserve', { account, amounts: tokens(wish) });
  // A refusal is an answer, not an error.
  if (held.verdict === 'VERDICT_STOP') throw new Error(`refused: ${held.refusal.reason}`);
  const hold = { id: held.reservation.id, tokens: wish };
  const meter = new Meter(ledger, hold.id);
  const { used, verdict, refusal, unasked } = await spend(ledger, meter, hold, wish, pause);
  const { spent } = await ledger.call('Commit', { reservation: hold.id, actual: tokens(used) });
  // What a debit and another Commit are answered after that.
  const late = await meter.debit(used);
  meter.end();
  const again = { reservation: hold.id, actual: tokens(used + 1n) };
  const error = await ledger.call('Commit', again).then(() => null, explain);
  const seen = {
    used: Number(used),
    verdict,
    refusal: refusal.reason,
    account: refusal.account,
    unasked,
    spent: Number(spent[0].value),
    ended: late.error.reason,
    error,
  };
  console.log(JSON.stringify(seen));
  ledger.stub.close();
}

main(...process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
