// The official client against the stand-in at QSTASH_URL, and its Receiver on what arrives.
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { text } from "node:stream/consumers";
import { Client, Receiver } from "@upstash/qstash";

const arrivals = [];
const fail = new Set(); // paths that answer 500
let arrived = () => {};
const app = createServer(async (req, res) => {
  arrivals.push({ url: req.url, headers: req.headers, body: await text(req) });
  res.writeHead(fail.has(req.url) ? 500 : 200, { "Content-Type": "application/json" }).end('{"from":"the app"}');
  arrived();
});
app.listen(0, "127.0.0.1");
await once(app, "listening");
const base = `http://127.0.0.1:${app.address().port}`;

// Waits until something arrived at path, the nth time.
async function arrival(path, n = 1) {
  for (;;) {
    const found = arrivals.filter((a) => a.url === path);
    if (found.length >= n) return found[n - 1];
    await new Promise((resolve) => (arrived = resolve));
  }
}

const client = new Client({ baseUrl: process.env.QSTASH_URL, token: "any" });
const keys = await (await fetch(`${process.env.QSTASH_URL}/v2/keys`)).json();
const receiver = new Receiver({ currentSigningKey: keys.current, nextSigningKey: keys.next });
const verify = ({ url, headers, body }) => receiver.verify({ signature: headers["upstash-signature"], body, url: base + url });

const published = await client.publishJSON({
  url: `${base}/orders?a=b`,
  body: { order: 1 },
  headers: { Shop: "7" },
  label: ["red", "blue"],
  retries: 5,
  timeout: 30,
  delay: 1,
  callback: `${base}/called`,
});
assert.match(published.messageId, /^msg_/);
const first = await arrival("/orders?a=b");
assert.equal(await verify(first), true);
assert.deepEqual(JSON.parse(first.body), { order: 1 });
assert.equal(first.headers.shop, "7");
assert.equal(first.headers["content-type"], "application/json");
assert.equal(first.headers["upstash-message-id"], published.messageId);
assert.equal(first.headers["upstash-label"], "red,blue");
assert.equal(first.headers["upstash-max-retries"], "5");
await assert.rejects(verify({ ...first, body: "{}" }));

const called = await arrival("/called");
assert.equal(await verify(called), true);
const callback = JSON.parse(called.body);
assert.equal(callback.sourceMessageId, published.messageId);
assert.equal(atob(callback.body), '{"from":"the app"}');

const same = { url: `${base}/once`, body: "x", deduplicationId: "one" };
const [once1, once2] = [await client.publish(same), await client.publish(same)];
assert.equal(once2.deduplicated, true);
assert.equal(once2.messageId, once1.messageId);

const queued = await client.queue({ queueName: "line" }).enqueueJSON({ url: `${base}/queued`, body: 1 });
assert.equal(await verify(await arrival("/queued")), true);
assert.equal((await client.messages.get(queued.messageId)).queueName, "line");

const batch = await client.batchJSON([
  { url: `${base}/batch/1`, body: { n: 1 }, headers: { Shop: "8" } },
  { url: `${base}/batch/2`, body: { n: 2 }, queueName: "line" },
]);
assert.equal(batch.length, 2);
for (const n of [1, 2]) {
  const a = await arrival(`/batch/${n}`);
  assert.equal(await verify(a), true);
  assert.deepEqual(JSON.parse(a.body), { n });
}

const later = await client.publishJSON({ url: `${base}/later`, body: { n: 1 }, notBefore: Math.floor(Date.now() / 1000) + 86400 });
const held = await client.messages.get(later.messageId);
assert.equal(held.url, `${base}/later`);
assert.deepEqual(JSON.parse(held.body), { n: 1 });
assert.deepEqual(await client.messages.cancel(later.messageId), { cancelled: 1 });
assert.deepEqual(await client.messages.cancel([later.messageId]), { cancelled: 0 });
await assert.rejects(client.messages.get("msg_other"), { status: 404 });

fail.add("/fails");
const failing = await client.publishJSON({ url: `${base}/fails`, body: {}, retries: 1, failureCallback: `${base}/failure` });
const failure = await arrival("/failure");
assert.equal(await verify(failure), true);
const { dlqId, sourceMessageId } = JSON.parse(failure.body);
assert.equal(sourceMessageId, failing.messageId);
const letters = await client.dlq.listMessages({ filter: { messageId: failing.messageId } });
assert.equal(letters.messages.length, 1);
assert.equal(letters.messages[0].dlqId, dlqId);
assert.equal(letters.messages[0].responseStatus, 500);
assert.equal(letters.messages[0].responseBody, '{"from":"the app"}');
fail.clear();
const { responses } = await client.dlq.retry(dlqId);
assert.equal(responses.length, 1);
assert.equal((await arrival("/fails", 3)).headers["upstash-message-id"], responses[0].messageId);
assert.deepEqual((await client.dlq.listMessages()).messages, []);

fail.add("/fails");
await client.publishJSON({ url: `${base}/fails`, body: {}, retries: 0, failureCallback: `${base}/failure` });
await arrival("/failure", 2);
const [letter] = (await client.dlq.listMessages()).messages;
assert.deepEqual(await client.dlq.delete([letter.dlqId]), { deleted: 1 });
await assert.rejects(client.dlq.delete(letter.dlqId), { status: 404 });

const { logs } = await client.logs({ filter: { messageId: failing.messageId } });
assert.deepEqual(
  logs.map((l) => l.state),
  ["FAILED", "ERROR", "ACTIVE", "RETRY", "ERROR", "ACTIVE", "CREATED"],
);
const page = await client.logs({ count: 2 });
assert.equal(page.logs.length, 2);
assert.equal((await client.logs({ count: 2, cursor: page.cursor })).logs.length, 2);
assert.equal((await client.logs({ filter: { state: "CANCELED" } })).logs[0].messageId, later.messageId);

await assert.rejects(client.schedules.list(), { status: 501 });
await assert.rejects(client.publishJSON({ url: base, flowControl: { key: "a", rate: 1 } }), { status: 501 });
await assert.rejects(client.publishJSON({ url: base, retryDelay: "1000 * retried" }), { status: 501 });
await assert.rejects(client.publishJSON({ url: base, retries: -1 }), { status: 400 });

app.close();
app.closeAllConnections();
