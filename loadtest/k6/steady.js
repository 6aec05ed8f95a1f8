// Checks at a constant rate, and visits: a user signs in, checks the session and signs out. No request may fail.
// PROFILE selects the rates and the duration.
import { common, constant, size } from './lib/profiles.js';
import { report } from './lib/summary.js';
import { flawless } from './lib/thresholds.js';
import * as traffic from './lib/traffic.js';

// For each profile: the full size, and the size with SHORT=1.
const PROFILES = {
  // An ordinary load.
  average: [{ rate: 200, loginRate: 1, duration: 60 }, { rate: 50, loginRate: 1, duration: 10 }],
  // A long run. Leaks and gradual slowdown show in the plot of latency over time.
  soak: [{ rate: 100, loginRate: 1, duration: 1800 }, { rate: 50, loginRate: 1, duration: 30 }],
  // During a restart of the replicas, one after another, by the driver or by an operator (kubectl rollout restart).
  'rolling-restart': [{ rate: 150, loginRate: 2, duration: 60 }, { rate: 80, loginRate: 2, duration: 20 }],
};
const profile = __ENV.PROFILE || 'average';
if (!PROFILES[profile]) throw new Error(`PROFILE is one of ${Object.keys(PROFILES).join(', ')}, not ${profile}`);
const { rate, loginRate, duration } = size(...PROFILES[profile]);

export const options = {
  ...common,
  scenarios: {
    checks: constant('checks', { rate, duration }),
    visits: constant('visits', { rate: loginRate, duration }),
  },
  thresholds: flawless,
};

export const { setup, checks, visits, teardown } = traffic;
export const handleSummary = (data) => report(profile, data);
