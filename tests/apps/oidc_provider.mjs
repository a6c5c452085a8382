// oidc-provider on a port of loopback: every user is alice, who agrees to everything. Back-channel log-out is on.
import { createServer } from "node:http";
import { generateKeyPairSync } from "node:crypto";
import { Provider } from "oidc-provider";

const { port, client } = JSON.parse(process.argv[2]);
const key = (kid) => ({
  ...generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey.export({ format: "jwk" }),
  kid,
  use: "sig",
  alg: "RS256",
});
const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [client],
  jwks: { keys: [key("first")] },
  cookies: { keys: ["a secret of the provider"] },
  features: {
    devInteractions: { enabled: false },
    backchannelLogout: { enabled: true },
  },
  interactions: { url: (_, { uid }) => `/interaction/${uid}` },
  // Its own protection refuses to send anything to loopback.
  fetch: (url, { dispatcher, ...options }) => fetch(url, options),
  async findAccount(_, id) {
    return { accountId: id, claims: async () => ({ sub: id }) };
  },
  async loadExistingGrant(ctx) {
    const grant = new ctx.oidc.provider.Grant({
      clientId: ctx.oidc.client.clientId,
      accountId: ctx.oidc.session.accountId,
    });
    grant.addOIDCScope("openid");
    await grant.save();
    return grant;
  },
});
provider.use(async (ctx, next) => {
  if (!ctx.path.startsWith("/interaction/")) return next();
  await provider.interactionFinished(ctx.req, ctx.res, { login: { accountId: "alice" } });
  ctx.respond = false;
});
provider.on("backchannel.success", () => console.log(JSON.stringify({ told: 200 })));
provider.on("backchannel.error", (_, error) => console.log(JSON.stringify({ told: error.response?.status ?? `${error}: ${error.cause}` })));
createServer(provider.callback()).listen(port, "127.0.0.1", () => console.log(JSON.stringify({ ready: port })));
