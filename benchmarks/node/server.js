// Express with express-session and connect-redis, set up as their documentation says; or, without SESSIONS, Express alone.
const express = require("express");
const session = require("express-session");
const { RedisStore } = require("connect-redis");
const { createClient } = require("redis");

const DATA = {
  user: "alice",
  cart: [...Array(5).keys()].map((id) => ({ id, name: `product ${id}`, quantity: 1 })),
  csrf: "x".repeat(40),
  theme: "dark",
  seen: "y".repeat(60),
};

async function main() {
  const app = express();
  app.disable("x-powered-by");
  app.set("etag", false);
  app.set("trust proxy", 1);
  app.get("/hello", (request, response) => response.type("text/plain").send("ok"));
  if (process.env.SESSIONS) {
    const client = createClient({ url: process.env.REDIS_URL });
    await client.connect();
    const settings = { store: new RedisStore({ client }), secret: "k".repeat(43), resave: false, saveUninitialized: false };
    app.use(session({ ...settings, cookie: { secure: true, httpOnly: true, sameSite: "lax", maxAge: 3600_000 } }));
    app.get("/read", (request, response) => response.type("text/plain").send(String(request.session.user ?? "None")));
    app.get("/write", (request, response) => {
      request.session.n = (request.session.n ?? 0) + 1;
      response.type("text/plain").send(String(request.session.n));
    });
    app.get("/fill", (request, response) => {
      Object.assign(request.session, DATA);
      response.type("text/plain").send("ok");
    });
  }
  app.listen(Number(process.env.PORT), "127.0.0.1");
}

main();
