// The proof that replicas share sessions. For every triple of replicas (i, j, k), several times:
//   log in on i, the session is valid on j, log out on k, every replica refuses the session.
// Through the balancer: a session created anywhere is valid on every replica that it asks, sessions don't stick to a
// replica, answers are not cached, users are not mixed up, and a logout takes effect at once.
//
// Runs with stock k6: k6 run -e TARGETS=… -e EDGE=… sharing.js. TARGETS are the replicas, EDGE is the balancer. Any
// violation fails the run. There are REPEATS sessions per triple, and EDGE_SESSIONS through the balancer.
import exec from 'k6/execution';
import { Counter } from 'k6/metrics';
import { sleep } from 'k6';

import { call, check, complain, login, logout, patiently, says, sessionOf } from './lib/client.js';
import { edge, number, targets } from './lib/fleet.js';
import { common } from './lib/profiles.js';
import { report } from './lib/summary.js';
import { observed } from './lib/thresholds.js';
import { removeUsers, seedUsers } from './lib/users.js';

const short = __ENV.SHORT === '1';
const n = targets.length;
const repeats = number('REPEATS', short ? 1 : 4);
const edgeSessions = edge ? number('EDGE_SESSIONS', short ? 9 : 36) : 0;
if (n < 2) throw new Error('sharing needs TARGETS, the base URLs of at least two replicas');

// Sessions that passed every step.
const sessions = new Counter('sharing_sessions');
// Tag pair, numbered from 1. accepted: `i>j`, created on i and accepted by j. refused: `k>m`, ended on k and refused by
// m.
const accepted = new Counter('sharing_accepted');
const refused = new Counter('sharing_refused');
const triples = new Counter('sharing_triples');
// Tag kind, and tag pair if the violation concerns a pair.
const violations = new Counter('sharing_violations');
// Requests that prove nothing, because there was no answer or an error that isn't about the session.
const obstacles = new Counter('sharing_obstacles');

const kinds = {
  not_a_replica: 'a target is not a single replica: the name in X-Served-By changes, or two targets share it',
  refused_session: 'a replica refused a session that another one had created (another Redis, or another SESSION_SECRET)',
  wrong_session: "an answer was about another session or user than that of the cookie",
  refused_logout: 'a live session could not be ended on another replica',
  alive_after_logout: 'a session was still accepted after its logout',
  sticky: 'the balancer sent all requests of one session to one replica',
  unreached: 'the balancer never asked one of the replicas',
  cached: 'an answer came twice: something in front of the replicas caches',
  cacheable: 'an answer about a session lacks Cache-Control: no-store',
};

const numbers = targets.map((_, at) => at + 1);
const pairs = numbers.flatMap((i) => numbers.map((j) => `${i}>${j}`));
// With more than five replicas there are too many triples to list; the pairs suffice.
const allTriples = n <= 5 ? pairs.flatMap((pair) => numbers.map((k) => `${pair}>${k}`)) : [];

export const options = {
  ...common,
  scenarios: {
    direct: {
      executor: 'shared-iterations',
      exec: 'direct',
      vus: Math.min(3, n),
      iterations: n ** 3 * repeats,
      maxDuration: '10m',
    },
    ...(edgeSessions && {
      edge: { executor: 'shared-iterations', exec: 'throughEdge', vus: 1, iterations: edgeSessions, maxDuration: '10m' },
    }),
  },
  thresholds: {
    sharing_violations: ['count==0'],
    sharing_obstacles: ['count==0'],
    sharing_sessions: [`count==${n ** 3 * repeats + edgeSessions}`],
    ...observed('sharing_violations', 'kind', Object.keys(kinds)),
    ...observed('sharing_violations', 'pair', pairs),
    ...observed('sharing_accepted', 'pair', pairs, 'count>0'),
    ...observed('sharing_refused', 'pair', pairs, 'count>0'),
    ...observed('sharing_triples', 'triple', allTriples, 'count>0'),
  },
};

function violation(kind, pair, text) {
  violations.add(1, pair ? { kind, pair } : { kind });
  complain(`${kind}: ${text}`);
}

function obstacle(text) {
  obstacles.add(1);
  complain(`obstacle: ${text}`);
}

// Each target must be a replica with its own name, or the proof would mean nothing.
export function setup() {
  const names = targets.map((base) => call('check', 'GET', base, '/profile', { want: 401 }).replica);
  names.forEach((name, at) => {
    if (!name) throw new Error(`${targets[at]} does not answer with X-Served-By`);
    const first = names.indexOf(name);
    if (first !== at) violation('not_a_replica', null, `${targets[at]} and ${targets[first]} are both ${name}`);
  });
  return { names, users: seedUsers(4) };
}

const pick = (list, at) => list[at % list.length];

// The answer if the session is refused as the contract says, else null. `where` is for messages.
function isRefused(base, session, pair, where) {
  const answer = call('check', 'GET', base, '/profile', { want: 401, cookie: session.cookie });
  if (answer.ok && answer.code === 'session_invalid') return answer;
  if (answer.status === 200) violation('alive_after_logout', pair, `${where}: ${says(answer)}`);
  else obstacle(`${where}: ${says(answer)}`);
  return null;
}

// The answer if the session is accepted and the answer is about it, else null.
function isAccepted(base, session, pair, where) {
  const answer = check(base, session);
  if (answer.status === 401) violation('refused_session', pair, `${where}: ${says(answer)}`);
  else if (answer.status !== 200) obstacle(`${where}: ${says(answer)}`);
  else if (!answer.ok) violation('wrong_session', pair, `${where}: ${says(answer)}`);
  if (answer.status === 200 && !/no-store/.test(answer.header('Cache-Control'))) {
    violation('cacheable', pair, `${where}: Cache-Control: ${answer.header('Cache-Control')}`);
  }
  return answer.ok ? answer : null;
}

function opened(base, user, where) {
  const answer = patiently(() => login(base, user));
  if (!answer.ok) obstacle(`login ${where}: ${says(answer)}`);
  return answer.ok ? answer : null;
}

function served(answer, name, where) {
  if (answer.replica !== name) violation('not_a_replica', null, `${where} was answered by ${answer.replica}, earlier by ${name}`);
}

// Ends the session on replica `at` and checks that every replica refuses it. Returns whether all did.
function ends(session, madeOn, at) {
  const pair = `${madeOn}>${at}`;
  const out = logout(targets[at - 1], session);
  if (!out.ok) {
    if (out.status === 401) violation('refused_logout', pair, `made on ${madeOn}, logout on ${at}: ${says(out)}`);
    else obstacle(`logout on ${at}: ${says(out)}`);
    return false;
  }
  return numbers
    .map((m) => {
      const gone = isRefused(targets[m - 1], session, `${at}>${m}`, `made on ${madeOn}, logged out on ${at}, asked on ${m}`);
      if (gone) refused.add(1, { pair: `${at}>${m}` });
      return gone !== null;
    })
    .every(Boolean);
}

export function direct({ names, users }) {
  const at = exec.scenario.iterationInTest;
  const [i, j, k] = [Math.floor(at / (n * n)) % n, Math.floor(at / n) % n, at % n].map((zero) => zero + 1);
  const made = opened(targets[i - 1], pick(users, at), `on ${i}`);
  if (!made) return;
  served(made, names[i - 1], `target ${i}`);
  const session = sessionOf(made);

  const seen = isAccepted(targets[j - 1], session, `${i}>${j}`, `made on ${i}, asked on ${j}`);
  if (!seen) {
    // End it on the replica that created it.
    logout(targets[i - 1], session);
    return;
  }
  served(seen, names[j - 1], `target ${j}`);
  if (seen.json.session.created_by !== names[i - 1]) {
    violation('wrong_session', `${i}>${j}`, `made on ${names[i - 1]}, but created_by is ${seen.json.session.created_by}`);
  }
  accepted.add(1, { pair: `${i}>${j}` });

  if (!ends(session, i, k)) {
    logout(targets[i - 1], session);
    return;
  }
  triples.add(1, { triple: `${i}>${j}>${k}` });
  sessions.add(1);
}

// Request ids and replicas that this virtual user has seen.
const requestIds = new Set();
const reached = new Set();

function fresh(answer, where) {
  if (!answer.requestId) return;
  if (requestIds.has(answer.requestId)) violation('cached', null, `${where}: request id ${answer.requestId} came twice`);
  requestIds.add(answer.requestId);
}

export function throughEdge({ names, users }) {
  const at = exec.scenario.iterationInTest;
  // Every third session is created directly on a replica, and every second logout goes directly to one.
  const madeOn = at % 3 === 0 ? (at / 3) % n : null;
  const endedOn = at % 2 === 0 ? (at / 2) % n : null;
  const [user, other] = [pick(users, at), pick(users, at + 1)];
  const made = opened(madeOn === null ? edge : targets[madeOn], user, madeOn === null ? 'through the edge' : `on ${madeOn + 1}`);
  const others = made && opened(pick(targets, at), other, 'of the other user');
  if (!others) return;
  const [session, theirs] = [sessionOf(made), sessionOf(others)];

  // Two sessions in turn, because a cache that ignores cookies would mix them up.
  const asked = new Set();
  let whole = true;
  for (let turn = 0; turn < 4 * n; turn++) {
    for (const mine of [session, theirs]) {
      const answer = isAccepted(edge, mine, null, 'through the edge');
      whole &&= answer !== null;
      if (!answer) continue;
      fresh(answer, 'through the edge');
      reached.add(answer.replica);
      if (mine === session) asked.add(answer.replica);
    }
  }
  if (n > 1 && whole && asked.size < 2) {
    violation('sticky', null, `${4 * n} requests of one session all went to ${[...asked].join()}`);
    whole = false;
  }
  for (const m of numbers) {
    whole &&= isAccepted(targets[m - 1], session, null, `made through the edge, asked on ${m}`) !== null;
  }

  const out = logout(endedOn === null ? edge : targets[endedOn], session);
  if (!out.ok) {
    if (out.status === 401) violation('refused_logout', null, `through the edge: ${says(out)}`);
    else obstacle(`logout: ${says(out)}`);
    whole = false;
  } else {
    for (const base of [...Array(2 * n).fill(edge), ...targets]) {
      const gone = isRefused(base, session, null, `logged out, asked ${base === edge ? 'through the edge' : base}`);
      if (gone && base === edge) fresh(gone, 'through the edge');
      whole &&= gone !== null;
    }
    // The other user's session is still valid.
    whole &&= isAccepted(edge, theirs, null, 'after the logout of another user') !== null;
  }
  logout(edge, theirs);

  if (at === edgeSessions - 1) {
    for (const name of names.filter((name) => !reached.has(name))) {
      violation('unreached', null, `${name} answered none of the requests through the edge`);
      whole = false;
    }
  }
  if (whole) sessions.add(1);
  // Stays below nginx's limit on logins per address.
  sleep(0.15);
}

export const teardown = ({ users }) => removeUsers(users);

export function handleSummary(data) {
  const count = (metric, tag, value) => data.metrics[tag ? `${metric}{${tag}:${value}}` : metric]?.values?.count || 0;
  const matrix = (metric) => numbers.map((i) => numbers.map((j) => count(metric, 'pair', `${i}>${j}`)));
  const found = Object.keys(kinds)
    .map((kind) => [kind, count('sharing_violations', 'kind', kind)])
    .filter(([, times]) => times);
  const shown = allTriples.filter((triple) => count('sharing_triples', 'triple', triple)).length;
  const all = count('sharing_sessions');
  const extra = {
    sessions: all,
    violations: count('sharing_violations'),
    obstacles: count('sharing_obstacles'),
    kinds: Object.fromEntries(found),
    meanings: Object.fromEntries(found.map(([kind]) => [kind, kinds[kind]])),
    accepted: matrix('sharing_accepted'),
    refused: matrix('sharing_refused'),
    violated: matrix('sharing_violations'),
    triples: { shown, of: allTriples.length },
    edge_sessions: edgeSessions,
    targets,
    edge,
  };
  const row = (cells) => cells.map((cell) => String(cell).padStart(6)).join('');
  const table = (title, rows) => [title, `      ${row(numbers)}`, ...rows.map((cells, at) => `${String(at + 1).padStart(6)}${row(cells)}`)];
  return report('sharing', data, {
    extra,
    lines: [
      `${all} sessions proved, ${extra.violations} violations, ${extra.obstacles} obstacles; ` +
        `${extra.accepted.flat().filter(Boolean).length} of ${pairs.length} pairs, ${shown} of ${allTriples.length} triples`,
      edge ? `through the balancer: ${edgeSessions} sessions` : 'EDGE is not set, so the balancer was not tested',
      ...table('created on the replica of the row, accepted by that of the column:', extra.accepted),
      ...table('ended on the replica of the row, refused by that of the column:', extra.refused),
      ...found.map(([kind, times]) => `violation ${kind}, ${times} times: ${kinds[kind]}`),
    ],
  });
}
