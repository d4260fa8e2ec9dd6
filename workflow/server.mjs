// The workflow app that workflow_test.go puts behind the receiver: Node's own HTTP server with real @upstash/workflow
// endpoints. It checks no signatures itself unless QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY are set.
//
// It also listens on a second port, for the test alone: GET / tells what reached the app, POST / triggers a run with
// the SDK's client.
import { once } from "node:events";
import { createServer } from "node:http";
import { text } from "node:stream/consumers";
import { setTimeout } from "node:timers/promises";
import { Client, serve, WorkflowNonRetryableError, WorkflowRetryAfterError } from "@upstash/workflow";

const seen = { calls: [], steps: [], failures: [] };

// Says that a step's function ran, then does what the order asks for.
async function step(context, name, { fails, milliseconds } = {}) {
  seen.steps.push({ run: context.workflowRunId, step: name });
  if (milliseconds) await setTimeout(milliseconds);
  switch (fails) {
    case "once":
      if (context.retried > 0) break;
    case "always":
      throw new Error("the card reader is away");
    case "for good":
      throw new WorkflowNonRetryableError("the card is stolen");
    case "for now":
      throw new WorkflowRetryAfterError("the bank is closed", 90);
  }
  return `${name} done`;
}

const order = serve(
  async (context) => {
    const asked = context.requestPayload;
    if (asked.stranger) return; // before the first step: the SDK takes it for a failed authorization
    const charged = await context.run("charge", () => step(context, "charge", asked));
    await context.sleep("cool down", 1);
    const [packed, mailed] = await Promise.all([
      context.run("pack", () => step(context, "pack")),
      context.run("mail", () => step(context, "mail")),
    ]);
    return { charged, packed, mailed };
  },
  {
    failureFunction: async ({ context, failStatus, failResponse }) => {
      seen.failures.push({ run: context.workflowRunId, status: failStatus, message: failResponse });
      return "the owner was told";
    },
  },
);

// An endpoint that has no failureFunction.
const plain = serve(async (context) => await context.run("only", () => step(context, "only")));

const workflows = { "/order": order, "/plain": plain };

const app = createServer(async (req, res) => {
  const path = req.url.split("?")[0];
  const body = await text(req);
  const call = { path: req.url, headers: req.headers, body };
  seen.calls.push(call);
  const request = new Request(`http://${req.headers.host}${req.url}`, { method: "POST", headers: req.headers, body });
  const answer = path in workflows ? await workflows[path].handler(request) : new Response("no such workflow", { status: 404 });
  call.answer = { status: answer.status, headers: Object.fromEntries(answer.headers), body: await answer.text() };
  res.writeHead(answer.status, call.answer.headers).end(call.answer.body);
});

const control = createServer(async (req, res) => {
  if (req.method === "POST") {
    const client = new Client({ baseUrl: process.env.QSTASH_URL, token: process.env.QSTASH_TOKEN });
    res.end(JSON.stringify(await client.trigger(JSON.parse(await text(req)))));
    return;
  }
  res.end(JSON.stringify(seen));
});

app.keepAliveTimeout = control.keepAliveTimeout = 0; // or a slow machine could meet a connection as it is closed
app.listen(0, "127.0.0.1");
control.listen(0, "127.0.0.1");
await Promise.all([once(app, "listening"), once(control, "listening")]);
console.log(JSON.stringify({ app: app.address().port, control: control.address().port }));
process.stdin.on("end", () => process.exit()).resume(); // the test has ended, however it did
