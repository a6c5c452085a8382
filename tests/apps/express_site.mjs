// express-session with connect-redis: logs users in on a port of loopback.
import express from "express";
import session from "express-session";
import { RedisStore } from "connect-redis";
import { createClient } from "redis";

const options = JSON.parse(process.argv[2]);
const client = createClient({ url: options.redis });
await client.connect();
const app = express();
app.use(express.json());
app.use(
  session({
    store: new RedisStore({ client, prefix: options.prefix }),
    secret: options.secret,
    resave: false,
    saveUninitialized: false,
    cookie: options.maxAge ? { maxAge: options.maxAge } : {},
  }),
);
app.post("/enter", (request, response) => {
  Object.assign(request.session, request.body);
  response.json({});
});
app.get("/me", (request, response) => {
  const { cookie, ...data } = request.session;
  response.json(data);
});
const server = app.listen(0, "127.0.0.1", () => console.log(server.address().port));
