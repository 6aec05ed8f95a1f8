// Thresholds check answers, errors and ratios, so that a broken fleet fails them, but a slow machine doesn't.

// Nothing but the answers that were asked for.
export const flawless = {
  authfleet_failed: ['count==0'],
  authfleet_unavailable: ['count==0'],
  authfleet_shed: ['count==0'],
};

// Under more load than it can take, a fleet may say so (503 `overloaded`, 429 `throttled`), and nothing else.
export const honest = {
  authfleet_failed: ['count==0'],
  authfleet_unavailable: ['count==0'],
};

// While its store is gone, it says 503, never 401 and never 200.
export const failingClosed = {
  authfleet_failed: ['count==0'],
};

// k6 keeps the values of a tag apart only where a threshold names them.
export const observed = (metric, tag, values, condition = 'count>=0') =>
  Object.fromEntries(values.map((value) => [`${metric}{${tag}:${value}}`, [condition]]));
