// The proof that applications share sign-ins and sign-outs, through a real proxy. For every triple of replicas (i, j, k):
//   sign in on i, the application is asked for through a proxy that asks replica j, sign out on k, and then every proxy
//   refuses the same cookie.
// Beside it: without a cookie nobody gets in, and the application learns who is there from authfleet, not from the client.
//
// loadtest/run sharing --via PROXY starts the parts. PROXIES are ports on this machine, one per replica of TARGETS, in
// the same order: each proxy asks only its own replica. VIA names the proxy.
import exec from 'k6/execution';
import http from 'k6/http';
import { Counter } from 'k6/metrics';

import { complain, login, logout, patiently, says, sessionOf } from './lib/client.js';
import { number, targets } from './lib/fleet.js';
import { common } from './lib/profiles.js';
import { report } from './lib/summary.js';
import { observed } from './lib/thresholds.js';
import { removeUsers, seedUsers } from './lib/users.js';

const LOGIN = 'login.example.org';
const APP = 'app1.example.org';
const SMUGGLED = 'smuggled';
const ports = (__ENV.PROXIES || '').split(',').filter(Boolean);
const n = targets.length;
if (n < 2 || ports.length !== n) throw new Error('applications needs TARGETS and as many PROXIES, at least two');
const repeats = number('REPEATS', __ENV.SHORT === '1' ? 1 : 4);

const sessions = new Counter('sharing_sessions');
const accepted = new Counter('sharing_accepted');
const refused = new Counter('sharing_refused');
const triples = new Counter('sharing_triples');
const violations = new Counter('sharing_violations');
const obstacles = new Counter('sharing_obstacles');

const kinds = {
  refused_session: 'a session that one replica had made did not open the application, asked about at another one',
  denied: 'a replica denied somebody whom the others let in (other access rules)',
  let_in: 'the application was reached without a session',
  alive_after_logout: 'the application was still reached after the logout',
  wrong_identity: 'the application was told of another user, or what the client said about itself',
};
const numbers = targets.map((_, at) => at + 1);
const pairs = numbers.flatMap((i) => numbers.map((j) => `${i}>${j}`));
const allTriples = pairs.flatMap((pair) => numbers.map((k) => `${pair}>${k}`));

export const options = {
  ...common,
  hosts: { [APP]: '127.0.0.1' },
  // The certificate is made for this run.
  insecureSkipTLSVerify: true,
  scenarios: {
    triples: {
      executor: 'shared-iterations',
      exec: 'triple',
      vus: Math.min(3, n),
      iterations: n ** 3 * repeats,
      maxDuration: '10m',
    },
  },
  thresholds: {
    sharing_violations: ['count==0'],
    sharing_obstacles: ['count==0'],
    sharing_sessions: [`count==${n ** 3 * repeats}`],
    ...observed('sharing_violations', 'kind', Object.keys(kinds)),
    ...observed('sharing_violations', 'pair', pairs),
    ...observed('sharing_accepted', 'pair', pairs, 'count>0'),
    ...observed('sharing_refused', 'pair', pairs, 'count>0'),
    ...observed('sharing_triples', 'triple', allTriples, 'count>0'),
  },
};

function violation(kind, pair, text) {
  violations.add(1, { kind, pair });
  complain(`${kind}: ${text}`);
}

function obstacle(text) {
  obstacles.add(1);
  complain(`obstacle: ${text}`);
}

// A request as it is, without cookie jar and redirects. `base` is a replica's URL, or a proxy's.
function get(base, host, path, headers) {
  return http.get(base + path, {
    headers: { Host: host, ...headers },
    jar: new http.CookieJar(),
    redirects: 0,
    timeout: '10s',
    tags: { name: host },
  });
}

// The application, through the proxy that asks replica j.
const through = (j, path, headers) => get(`https://${APP}:${ports[j - 1]}`, APP, path, headers);
const fetching = { Accept: 'application/json', 'Sec-Fetch-Mode': 'cors', 'Remote-User-Id': SMUGGLED, Remote_User_Id: SMUGGLED };
const opening = { Accept: 'text/html', 'Sec-Fetch-Mode': 'navigate' };

function pathOf(response, host) {
  const location = response.headers.Location || '';
  return location.startsWith(`https://${host}/`) ? location.slice(`https://${host}`.length) : null;
}

const cookieOf = (response) => (response.headers['Set-Cookie'] || '').split(';')[0];

// The cookie of the application's host, as a browser gets it that has a session: page, start, sign-in on replica i,
// callback. Null if one of the steps fails; `denied` if the page itself was.
function opened(i, j, session) {
  const page = through(j, '/', opening);
  if (page.status === 403) return 'denied';
  const start = through(j, pathOf(page, APP) || '/not-redirected', opening);
  const signIn = get(targets[i - 1], LOGIN, pathOf(start, LOGIN) || '/not-redirected', { ...opening, Cookie: session.cookie });
  const callback = through(j, pathOf(signIn, APP) || '/not-redirected', { ...opening, Cookie: cookieOf(start) });
  const cookie = cookieOf(callback);
  if (cookie.startsWith('__Host-authfleet=')) return cookie;
  complain(`page ${page.status}, start ${start.status}, sign-in ${signIn.status}, callback ${callback.status}`);
  return null;
}

// Every value that the application got for the user's id, under any spelling of the name.
function identities(response) {
  const plain = (name) => name.toLowerCase().replace(/[^a-z]/g, '');
  return response
    .json()
    .headers.filter(([name]) => plain(name) === 'remoteuserid')
    .map(([, value]) => value);
}

export function setup() {
  return { users: seedUsers(4) };
}

export function triple({ users }) {
  const at = exec.scenario.iterationInTest;
  const [i, j, k] = [Math.floor(at / (n * n)) % n, Math.floor(at / n) % n, at % n].map((zero) => zero + 1);
  const user = users[at % users.length];
  const made = patiently(() => login(targets[i - 1], user));
  if (!made.ok) return obstacle(`login on ${i}: ${says(made)}`);
  const session = sessionOf(made);
  if (proves(i, j, k, user, session)) {
    triples.add(1, { triple: `${i}>${j}>${k}` });
    sessions.add(1);
  }
}

function proves(i, j, k, user, session) {
  const there = `made on ${i}, asked about at ${j}`;
  const anonymous = through(j, '/', fetching);
  if (anonymous.status === 200) violation('let_in', `${i}>${j}`, `${there}, without a cookie`);
  else if (anonymous.status !== 401 && anonymous.status !== 403) obstacle(`${there}, without a cookie: ${anonymous.status}`);

  const cookie = opened(i, j, session);
  const seen = cookie && cookie !== 'denied' ? through(j, '/', { ...fetching, Cookie: cookie }) : null;
  let whole = false;
  if (cookie === 'denied' || seen?.status === 403) violation('denied', `${i}>${j}`, there);
  else if (!seen || seen.status === 401) violation('refused_session', `${i}>${j}`, `${there}: ${seen ? 401 : 'no cookie'}`);
  else if (seen.status !== 200) obstacle(`${there}: ${seen.status}`);
  else if (identities(seen).join() !== user.user_id) {
    violation('wrong_identity', `${i}>${j}`, `${there}: ${identities(seen).join()} instead of ${user.user_id}`);
  } else {
    accepted.add(1, { pair: `${i}>${j}` });
    whole = anonymous.status === 401;
  }

  const out = logout(targets[k - 1], session);
  if (!out.ok) {
    obstacle(`logout on ${k}: ${says(out)}`);
    return false;
  }
  if (!seen) return false;
  for (const m of numbers) {
    const after = through(m, '/', { ...fetching, Cookie: cookie });
    if (after.status === 401) refused.add(1, { pair: `${k}>${m}` });
    else if (after.status === 200) violation('alive_after_logout', `${k}>${m}`, `signed out on ${k}, asked about at ${m}`);
    else if (after.status === 403) violation('denied', `${k}>${m}`, `signed out on ${k}, asked about at ${m}`);
    else obstacle(`signed out on ${k}, asked about at ${m}: ${after.status}`);
    whole &&= after.status === 401;
  }
  return whole;
}

export const teardown = ({ users }) => removeUsers(users);

export function handleSummary(data) {
  const count = (metric, tag, value) => data.metrics[tag ? `${metric}{${tag}:${value}}` : metric]?.values?.count || 0;
  const matrix = (metric) => numbers.map((i) => numbers.map((j) => count(metric, 'pair', `${i}>${j}`)));
  const found = Object.keys(kinds)
    .map((kind) => [kind, count('sharing_violations', 'kind', kind)])
    .filter(([, times]) => times);
  const extra = {
    via: __ENV.VIA || 'a proxy',
    sessions: count('sharing_sessions'),
    violations: count('sharing_violations'),
    obstacles: count('sharing_obstacles'),
    kinds: Object.fromEntries(found),
    meanings: Object.fromEntries(found.map(([kind]) => [kind, kinds[kind]])),
    accepted: matrix('sharing_accepted'),
    refused: matrix('sharing_refused'),
    violated: matrix('sharing_violations'),
    triples: {
      shown: allTriples.filter((each) => count('sharing_triples', 'triple', each)).length,
      of: allTriples.length,
    },
    edge_sessions: 0,
    targets,
  };
  return report('sharing', data, {
    extra,
    lines: [
      `through ${extra.via}: ${extra.sessions} sessions proved, ${extra.violations} violations, ${extra.obstacles} obstacles; ` +
        `${extra.triples.shown} of ${extra.triples.of} triples`,
      ...found.map(([kind, times]) => `violation ${kind}, ${times} times: ${kinds[kind]}`),
    ],
  });
}
