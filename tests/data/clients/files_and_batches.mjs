// OpenAI's own Node client, unchanged, against a server: node files_and_batches.mjs URL KEY NAMES; prints what it found.
import OpenAI, { toFile } from "openai";
const client = new OpenAI({ baseURL: process.argv[2], apiKey: process.argv[3], maxRetries: 0 });
const names = JSON.parse(process.argv[4]);
const lines = names.map((custom_id) => JSON.stringify({ custom_id, method: "POST", url: "/v1/chat/completions",
  body: { model: "replay", messages: [{ role: "user", content: "?" }] } })).join("\n");
const file = await client.files.create({ file: await toFile(Buffer.from(lines), "batch.jsonl"), purpose: "batch" });
await client.files.waitForProcessing(file.id, { pollInterval: 100 });
let batch = await client.batches.create({ input_file_id: file.id, endpoint: "/v1/chat/completions",
  completion_window: "24h", metadata: { budget: "1M tokens" } });
const many = [];
for (let k = 0; k < 30; k++) many.push((await client.batches.create({ input_file_id: "file-none",
  endpoint: "/v1/chat/completions", completion_window: "24h" })).id);
while (!["completed", "failed", "expired", "cancelled"].includes(batch.status)) {
  await new Promise((done) => setTimeout(done, 200));
  batch = await client.batches.retrieve(batch.id);
}
const listed = [];
for await (const each of client.batches.list({ limit: 7 })) listed.push(each.id);
const output = await (await client.files.content(batch.output_file_id)).text();
const cancelled = await client.batches.cancel(batch.id).catch((error) => error.status);
const gone = await client.files.delete(batch.output_file_id);
const missing = await client.files.retrieve(batch.output_file_id).catch((error) => error.status);
console.log(JSON.stringify({ status: batch.status, counts: batch.request_counts, cancelled, missing, deleted: gone.deleted,
  rows: output.trim().split("\n").map((line) => JSON.parse(line).custom_id),
  listed: listed.slice(0, 31).join() === [...many.reverse(), batch.id].join() }));
