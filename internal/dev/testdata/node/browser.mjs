// The stand-in's page at BASE in a real Chromium. The receiver at RECEIVER fails at /twice until the third attempt.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const { BASE, RECEIVER, CHROMIUM } = process.env;
const axe = await readFile(fileURLToPath(import.meta.resolve("axe-core/axe.min.js")), "utf8");
const browser = await chromium.launch({
  executablePath: CHROMIUM,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

const complaints = [];

async function open(options) {
  const context = await browser.newContext({ permissions: ["clipboard-read", "clipboard-write"], ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(60_000);
  page.on("console", (m) => ["error", "warning"].includes(m.type()) && complaints.push(`${m.text()} at ${page.url()}`));
  page.on("pageerror", (e) => complaints.push(String(e)));
  page.on("request", (r) => r.url().startsWith(BASE + "/") || complaints.push(`a request to ${r.url()}`));
  return page;
}

// No serious finding, and nothing to scroll sideways.
async function inspect(page, where) {
  await page.evaluate(axe); // past the page's policy: the debugger may
  const { violations } = await page.evaluate(() => window.axe.run());
  const serious = violations.filter((v) => ["serious", "critical"].includes(v.impact));
  assert.deepEqual(serious.map((v) => `${where}: ${v.id}: ${v.nodes.map((n) => n.html)}`), []);
  const { wide, shown } = await page.evaluate(() => ({ wide: document.documentElement.scrollWidth, shown: innerWidth }));
  assert.ok(wide <= shown, `${where}: ${wide} pixels wide in ${shown}`);
}

const focused = (page) => page.evaluate(() => document.activeElement.id || document.activeElement.textContent.trim());

const page = await open();
await page.goto(BASE);
await page.getByText("Nothing has been published yet").waitFor();
await inspect(page, "the empty list");

// Publish. The row comes by itself; focus and page stay.
await page.evaluate(() => (window.loaded = "once"));
await page.getByLabel("Destination").fill(`${RECEIVER}/twice`);
await page.getByLabel("Body").fill('{"order": {"id": 1}}');
await page.getByRole("button", { name: "Publish" }).click();
await page.getByText(/^Published msg_/).waitFor();
const link = page.locator("#rows a");
await link.waitFor();
assert.equal(await focused(page), "Publish");
assert.equal(await page.evaluate(() => window.loaded), "once");
const id = await link.textContent();

// Watch: the receiver's words, and what QStash does then, arrive on the open page.
await link.click();
await page.waitForURL(`${BASE}/messages/${id}`);
await page.getByText("failed, QStash retries").first().waitFor();
await page.getByText("retries in 12s (backoff)").first().waitFor();
await page.evaluate(() => (window.loaded = "once"));
const now = page.getByRole("button", { name: "Deliver the next attempt now" });
await page.locator("#attempt-1 summary").last().click();
await now.focus();
await page.keyboard.press("Enter");
await page.locator("#attempt-2").waitFor();
await page.getByText("for the next attempt").waitFor();
assert.equal(await focused(page), "now");
await page.keyboard.press("Enter");
await page.locator("#attempt-3").getByText("done", { exact: true }).first().waitFor();
await page.locator("#state").getByText("delivered").waitFor();
assert.equal(await focused(page), "now");
assert.equal(await page.evaluate(() => window.loaded), "once");
assert.equal(await page.locator("#attempt-1 details").last().getAttribute("open"), "", "what was opened stays open");
assert.equal(await now.getAttribute("aria-disabled"), "true");
await page.locator("section").last().getByText('"id": 1').waitFor();
await inspect(page, "a message");

// Tab order is page order, and focus can be seen.
await page.reload();
await page.getByText("delivered").first().waitFor();
const order = [];
for (let i = 0; i < 8; i++) {
  await page.keyboard.press("Tab");
  order.push(await focused(page));
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  assert.notEqual(outline, "none", `focus on ${order.at(-1)} cannot be seen`);
}
assert.deepEqual(order.slice(0, 6), [
  "All messages", "now", "Send again as the same message", "Send again as a new message", "copy", "curl command",
]);

// Send again.
await page.getByRole("button", { name: "Send again as the same message" }).click();
await page.locator("#attempt-4").getByText("sent again").waitFor();
await page.getByRole("button", { name: "Copy as curl" }).click();
await page.getByText("Copied").waitFor();
const copied = await page.evaluate(() => navigator.clipboard.readText());
assert.ok(copied.startsWith("curl ") && copied.includes(`${RECEIVER}/twice`), copied);
await page.getByRole("button", { name: "Send again as a new message" }).click();
await page.waitForURL((url) => url.pathname !== `/messages/${id}`);
await page.locator("#state").getByText("delivered").waitFor();

// A fault, and a mistake.
await page.goto(BASE);
await page.getByLabel("Destination").fill(`${RECEIVER}/orders`);
await page.getByLabel("Fault in the first attempt").selectOption("answer-lost");
await page.getByRole("button", { name: "Publish" }).click();
await page.locator("#rows li").nth(2).waitFor();
await page.locator("#rows a").first().click();
await page.getByText("was lost on the way").waitFor();
await page.goto(BASE);
await page.getByLabel("Destination").fill("http://");
await page.evaluate(() => (document.forms[0].noValidate = true));
complaints.length && assert.deepEqual(complaints, []);
await page.getByRole("button", { name: "Publish" }).click();
await page.locator(".result.wrong").waitFor();
complaints.length = 0; // Chromium logs the refusal itself

// Small and dark, with a long path.
for (const colorScheme of ["light", "dark"]) {
  const small = await open({ viewport: { width: 400, height: 800 }, colorScheme });
  await small.goto(BASE);
  await small.getByLabel("Destination").fill(`${RECEIVER}/${"long".repeat(100)}?${"q=".repeat(100)}`);
  await small.getByRole("button", { name: "Publish" }).click();
  await small.locator("#rows .destination").first().getByText("longlong").waitFor();
  await inspect(small, `the list, ${colorScheme}`);
  await small.locator("#rows a").first().click();
  await small.locator("#state").getByText("delivered").waitFor();
  for (const summary of await small.locator("summary").all()) await summary.click();
  await inspect(small, `a message, ${colorScheme}`);
}

// Without scripts it works as well.
const plain = await open({ javaScriptEnabled: false });
await plain.goto(BASE);
await plain.getByLabel("Destination").fill(`${RECEIVER}/plain`);
await plain.getByRole("button", { name: "Publish" }).click();
await plain.getByText(`${RECEIVER}/plain`).first().waitFor();

assert.deepEqual(complaints, []);
await browser.close();
