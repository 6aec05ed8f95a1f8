// Sends requests like an API client, without cookie jar and redirects. Checks and records every answer.
import http from 'k6/http';
import { sleep } from 'k6';
import { Counter, Trend } from 'k6/metrics';

// Every request, with the tags op, outcome and replica. The driver draws its plots from this.
const requestMs = new Trend('authfleet_request_ms', true);
// Session checks only, tagged with the phase of the scenario.
const checkMs = new Trend('authfleet_check_ms', true);
// Answers that are neither the expected one nor a refusal that the contract allows.
const failed = new Counter('authfleet_failed');
// 503 `overloaded` or 429 `throttled`, with Retry-After.
const shed = new Counter('authfleet_shed');
// 503 `store_unavailable` or `upstream_unavailable`, with Retry-After.
const unavailable = new Counter('authfleet_unavailable');
// 401 about a session that was created shortly before a failover of Redis, where the caller allows that.
const lost = new Counter('authfleet_lost');

http.setResponseCallback(null);

let complaints = 0;
// Prints at most five messages.
export function complain(text) {
  if (complaints++ < 5) console.error(text);
}

function outcomeOf(answer, want) {
  if (answer.status === want) return 'ok';
  const polite = Number(answer.header('Retry-After')) > 0;
  if (polite && answer.status === 429 && answer.code === 'throttled') return 'shed';
  if (polite && answer.status === 503 && answer.code === 'overloaded') return 'shed';
  if (polite && answer.status === 503 && /^(store|upstream)_unavailable$/.test(answer.code)) return 'unavailable';
  return 'failed';
}

// call('check', 'GET', base, '/profile', {want: 200, cookie, body, phase, accept}) → an answer.
// `form` sends fields as a browser does from one of our own pages.
// `accept(answer)` can check more of an answer; if it returns false, the answer counts as failed. `mayBeLost`: a failover
// may have lost the session.
export function call(
  op,
  method,
  base,
  path,
  { want = 200, cookie, body, form, phase, accept, mayBeLost, cleanup } = {},
) {
  const params = {
    headers: {},
    // A new, empty jar each time, or k6 would send the cookie of an earlier login.
    jar: new http.CookieJar(),
    redirects: 0,
    timeout: method === 'GET' ? '10s' : '40s',
    tags: { name: op },
  };
  if (cookie) params.headers.Cookie = cookie;
  if (body !== undefined) params.headers['Content-Type'] = 'application/json';
  if (form) Object.assign(params.headers, { 'Content-Type': 'application/x-www-form-urlencoded', 'Sec-Fetch-Site': 'same-origin' });
  const fields = Object.entries(form || {}).map((pair) => pair.map(encodeURIComponent).join('='));
  const sent = form ? fields.join('&') : body === undefined ? null : typeof body === 'string' ? body : JSON.stringify(body);
  const response = http.request(method, base + path, sent, params);

  const answer = {
    status: response.status,
    error: response.error,
    replica: response.headers['X-Served-By'] || '',
    requestId: response.headers['X-Request-Id'] || '',
    ms: response.timings.duration,
    json: {},
    text: response.body || '',
    code: '',
    header: (name) => response.headers[name] || '',
    cookie: '',
  };
  if (/json/.test(answer.header('Content-Type'))) {
    try {
      answer.json = response.json();
      answer.code = answer.json.code || '';
    } catch {
      answer.code = 'not_json';
    }
  }
  const set = /^((?:__Host-)?session=[^;]+)/.exec(answer.header('Set-Cookie'));
  if (set) answer.cookie = set[1];

  answer.outcome = outcomeOf(answer, want);
  if (answer.outcome === 'ok' && accept && !accept(answer)) answer.outcome = 'failed';
  if (mayBeLost && answer.status === 401 && answer.code === 'session_invalid') answer.outcome = 'lost';
  answer.ok = answer.outcome === 'ok';
  // removeUsers reports its own failures, which are not failures of the scenario.
  if (cleanup) return answer;
  requestMs.add(answer.ms, { op, outcome: answer.outcome, replica: answer.replica || 'none' });
  if (op === 'check' && answer.ok) checkMs.add(answer.ms, { phase: phase || 'all' });
  if (answer.outcome === 'failed') {
    failed.add(1, { op });
    complain(`${method} ${base}${path}: ${says(answer)}, expected ${want}`);
  }
  if (answer.outcome === 'shed') shed.add(1, { op });
  if (answer.outcome === 'unavailable') unavailable.add(1, { op });
  if (answer.outcome === 'lost') lost.add(1, { op });
  return answer;
}

export const says = (answer) =>
  answer.status ? `${answer.status} ${answer.code} from ${answer.replica || 'nobody'}` : `no answer: ${answer.error}`;

// Repeats a shed request after its Retry-After. For seeding and proofs, not for measurements.
export function patiently(ask, tries = 15) {
  for (let n = 1; ; n++) {
    const answer = ask();
    if (answer.outcome !== 'shed' || n === tries) return answer;
    sleep(Math.min(Number(answer.header('Retry-After')) || 1, 5));
  }
}

export const login = (base, user, more = {}) =>
  call('login', 'POST', base, '/auth/login', {
    body: { email: user.email, password: user.password },
    accept: (answer) => answer.cookie !== '' && answer.json.user_id === user.user_id,
    ...more,
  });

// The answer must name the session whose cookie was sent.
export const check = (base, session, more = {}) =>
  call('check', 'GET', base, '/profile', {
    cookie: session.cookie,
    accept: ({ json }) => json.user_id === session.user_id && json.session?.session_id === session.session_id,
    ...more,
  });

export const logout = (base, session, more = {}) =>
  call('logout', 'POST', base, '/auth/logout', { cookie: session.cookie, ...more });

export const sessionOf = (answer) => ({
  cookie: answer.cookie,
  user_id: answer.json.user_id,
  session_id: answer.json.session_id,
});
