// Thresholds check answers, errors and ratios. A broken fleet fails them; a slow machine doesn't.

// Every answer is the expected one.
export const flawless = {
  authfleet_failed: ['count==0'],
  authfleet_unavailable: ['count==0'],
  authfleet_shed: ['count==0'],
};

// An overloaded fleet may also answer 503 `overloaded` and 429 `throttled`.
export const honest = {
  authfleet_failed: ['count==0'],
  authfleet_unavailable: ['count==0'],
};

// While its store is down, a fleet may also answer 503 `store_unavailable`, but never 401 or 200.
export const failingClosed = {
  authfleet_failed: ['count==0'],
};

// k6 reports a value of a tag separately only if a threshold names it.
export const observed = (metric, tag, values, condition = 'count>=0') =>
  Object.fromEntries(values.map((value) => [`${metric}{${tag}:${value}}`, [condition]]));
