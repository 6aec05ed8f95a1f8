// The fleet under test, from the environment:
//   TARGETS  base URLs of the replicas, separated by commas: http://10.0.0.1:3000,http://10.0.0.2:3000
//   EDGE     base URL of the balancer in front of them: http://nginx:8080
// Requests go nowhere else.
const trimmed = (url) => url.trim().replace(/\/+$/, '');

export const targets = (__ENV.TARGETS || '').split(',').map(trimmed).filter(Boolean);
export const edge = trimmed(__ENV.EDGE || '');

for (const url of [...targets, edge].filter(Boolean)) {
  if (!/^https?:\/\/[^/\s]+$/.test(url)) throw new Error(`not a base URL: ${url}`);
}
if (!targets.length && !edge) throw new Error('set TARGETS (base URLs of replicas) or EDGE (base URL of the balancer), or both');
if (new Set(targets).size !== targets.length) throw new Error('TARGETS names a replica twice');

// The address for users: the balancer, or without one the replicas in turn.
let turn = 0;
export const front = () => edge || targets[turn++ % targets.length];
// A replica if possible, to avoid nginx's limit on logins per address: a load test has only one address.
export const side = (n) => (targets.length ? targets[n % targets.length] : edge);

export function number(name, fallback) {
  const text = __ENV[name];
  if (text === undefined || text === '') return fallback;
  const value = Number(text);
  if (!Number.isFinite(value) || value < 0) throw new Error(`${name} must be a number, not ${text}`);
  return value;
}

// A duration variable (30s, 5m, 1h) in seconds.
export function seconds(name, fallback) {
  const text = __ENV[name];
  if (text === undefined || text === '') return fallback;
  const match = /^(\d+)(s|m|h)$/.exec(text);
  if (!match) throw new Error(`${name} must look like 30s, 5m or 1h, not ${text}`);
  return Number(match[1]) * { s: 1, m: 60, h: 3600 }[match[2]];
}
