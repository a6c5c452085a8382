// Express with better-auth, set up as its documentation says: its sessions in Redis as the secondary storage, users in memory.
import { createRequire } from "node:module";
import { betterAuth } from "better-auth";
import { memoryAdapter } from "better-auth/adapters/memory";
import { fromNodeHeaders } from "better-auth/node";

const require = createRequire(import.meta.url);
const express = require("express");
const { createClient } = require("redis");

const client = createClient({ url: process.env.REDIS_URL });
await client.connect();

const auth = betterAuth({
  baseURL: "https://example.org",
  secret: "k".repeat(43),
  database: memoryAdapter({ user: [], session: [], account: [], verification: [] }),
  secondaryStorage: {
    get: (key) => client.get(key),
    set: (key, value, ttl) => (ttl ? client.set(key, value, { EX: ttl }) : client.set(key, value)),
    delete: (key) => client.del(key),
  },
  // No log-in is measured; a real hash would only make the start slow.
  emailAndPassword: { enabled: true, password: { hash: async (password) => password, verify: async () => true } },
  telemetry: { enabled: false },
});

const app = express();
app.disable("x-powered-by");
app.set("etag", false);
app.set("trust proxy", 1);
app.get("/hello", (request, response) => response.type("text/plain").send("ok"));
app.get("/read", async (request, response) => {
  const found = await auth.api.getSession({ headers: fromNodeHeaders(request.headers) });
  response.type("text/plain").send(found?.user.name ?? "None");
});
let number = 0;
app.get("/fill", async (request, response) => {
  const body = { name: "alice", email: `alice${(number += 1)}@example.org`, password: "x".repeat(20) };
  const made = await auth.api.signUpEmail({ body, asResponse: true });
  for (const line of made.headers.getSetCookie()) response.append("Set-Cookie", line);
  response.type("text/plain").send("ok");
});
app.listen(Number(process.env.PORT), "127.0.0.1");
