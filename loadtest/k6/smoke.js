// Each API call once, with valid and invalid input, through the balancer if there is one. Run it before a load test.
import { check as k6check } from 'k6';

import { call, check, login, logout, patiently, says, sessionOf } from './lib/client.js';
import { common } from './lib/profiles.js';
import { edge, front } from './lib/fleet.js';
import { report } from './lib/summary.js';
import { flawless } from './lib/thresholds.js';
import { removeUsers, seedUsers } from './lib/users.js';

const rounds = Number(__ENV.ROUNDS || 3);

export const options = {
  ...common,
  scenarios: { walk: { executor: 'per-vu-iterations', exec: 'walk', vus: 1, iterations: rounds, maxDuration: '5m' } },
  thresholds: { ...flawless, checks: ['rate==1'] },
};

export const setup = () => ({ users: seedUsers(2) });

export function walk({ users: [user] }) {
  const base = front();
  const problem = (op, method, path, want, code, more = {}) => {
    const answer = patiently(() => call(op, method, base, path, { want, ...more }));
    k6check(answer, {
      [`${op}: ${want} ${code}`]: (a) => a.status === want && a.code === code,
      [`${op}: problem+json`]: (a) => a.header('Content-Type').startsWith('application/problem+json') && a.json.status === want,
    });
    return answer;
  };

  problem('profile without cookie', 'GET', '/profile', 401, 'session_invalid');
  problem('profile with forged cookie', 'GET', '/profile', 401, 'session_invalid', { cookie: `session=${'A'.repeat(116)}` });
  problem('unknown path', 'GET', '/no/such/path', 404, 'not_found');
  const method = problem('wrong method', 'GET', '/auth/login', 405, 'method_not_allowed');
  k6check(method, { 'wrong method: Allow': (a) => /POST/.test(a.header('Allow')) });
  problem('login that is not JSON', 'POST', '/auth/login', 400, 'malformed_json', { body: '{' });
  problem('login without password', 'POST', '/auth/login', 422, 'validation_failed', { body: { email: user.email } });
  problem('register with a short password', 'POST', '/auth/register', 422, 'validation_failed', {
    body: { email: 'short@example.com', password: 'short' },
  });
  problem('register twice', 'POST', '/auth/register', 409, 'email_taken', { body: { email: user.email.toUpperCase(), password: user.password } });
  problem('login with a wrong password', 'POST', '/auth/login', 401, 'invalid_credentials', {
    body: { email: user.email, password: `not ${user.password}` },
  });

  const first = patiently(() => login(base, user));
  k6check(first, {
    'login: cookie': (a) => a.cookie !== '',
    'login: HttpOnly; SameSite=Lax; Path=/': (a) => {
      const attributes = a.header('Set-Cookie').toLowerCase();
      return ['httponly', 'samesite=lax', 'path=/'].every((each) => attributes.includes(each));
    },
    'login: __Host- only with Secure': (a) => a.cookie.startsWith('__Host-') === /;\s*secure/i.test(a.header('Set-Cookie')),
    'login: no-store': (a) => /no-store/.test(a.header('Cache-Control')),
    'login: request id and replica': (a) => a.requestId !== '' && a.replica !== '',
    'login: the token is only in Set-Cookie': (a) => !JSON.stringify(a.json).includes(a.cookie.split('=')[1]),
  });
  if (!first.ok) return console.error(`login: ${says(first)}`);
  const session = sessionOf(first);
  for (let n = 0; n < 6; n++) check(base, session);

  // A login ends the session whose cookie it sends. This one uses the username and the short path.
  const username = first.json.username;
  const second = patiently(() =>
    call('login', 'POST', base, '/login', { body: { username, password: user.password }, cookie: session.cookie }),
  );
  const next = sessionOf(second);
  k6check(second, { 'login again: a new session': (a) => a.json.session_id && a.json.session_id !== session.session_id });
  problem('check of the replaced session', 'GET', '/profile', 401, 'session_invalid', { cookie: session.cookie });
  check(base, next);

  const out = logout(base, next);
  k6check(out, { 'logout: cookie cleared': (a) => /max-age=0|expires=thu, 01 jan 1970/i.test(a.header('Set-Cookie')) });
  problem('check after logout', 'GET', '/profile', 401, 'session_invalid', { cookie: next.cookie });
  problem('logout twice', 'POST', '/auth/logout', 401, 'session_invalid', { cookie: next.cookie });
  const short = patiently(() => login(base, user));
  call('logout', 'POST', base, '/logout', { cookie: short.cookie });

  pages(base, user, username);

  const openapi = call('openapi', 'GET', base, '/openapi.json');
  k6check(openapi, { 'openapi: 3.1': (a) => /^3\.1/.test(a.json.openapi) });
  if (edge) problem('ops listener through the edge', 'GET', '/metrics', 404, 'not_found');
}

// What a browser does: each page, a mistake, a sign-in, the account, a sign-out.
function pages(base, user, username) {
  const page = (op, method, path, want, more = {}) => {
    const answer = patiently(() => call(op, method, base, path, { want, ...more }));
    const isPage = answer.header('Content-Type').startsWith('text/html');
    k6check(answer, {
      [`${op}: ${want}`]: (a) => a.status === want,
      [`${op}: a page, or the way to one`]: (a) => isPage || (want === 303 && a.header('Location').startsWith('/')),
      [`${op}: no scripts`]: (a) => !isPage || a.header('Content-Security-Policy').startsWith("default-src 'none'"),
    });
    return answer;
  };

  page('page without session', 'GET', '/account', 303);
  page('page register', 'GET', '/register', 200);
  const first = page('page sign-in', 'GET', '/sign-in', 200);
  const [, style] = /rel="stylesheet" href="([^"]+)"/.exec(first.text) || [];
  const styled = call('page style', 'GET', base, style || '/no-style');
  k6check(styled, { 'page style: kept for ever': (a) => /immutable/.test(a.header('Cache-Control')) });
  page('page wrong password', 'POST', '/sign-in', 401, { form: { username, password: `not ${user.password}` } });
  page('page from another site', 'POST', '/sign-in', 403, { body: 'username=x&password=y' });

  const { cookie } = page('page signs in', 'POST', '/sign-in', 303, { form: { username, password: user.password } });
  k6check(cookie, { 'page signs in: cookie': (value) => value !== '' });
  const account = page('page account', 'GET', '/account', 200, { cookie });
  k6check(account, {
    'page account: who I am': (a) => a.text.includes(username) && a.text.includes(user.email),
    'page account: the replica that answers': (a) => a.text.includes(a.replica),
  });
  page('page signs out', 'POST', '/sign-out', 303, { cookie, form: {} });
  page('page after sign-out', 'GET', '/account', 303, { cookie });
}

export const teardown = ({ users }) => removeUsers(users);
export const handleSummary = (data) => report('smoke', data);
