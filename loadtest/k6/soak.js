// The average load for long: leaks, growth and slow decay show in the plot of latency over time.
import { common, constant, size } from './lib/profiles.js';
import * as steady from './lib/steady.js';
import { report } from './lib/summary.js';
import { flawless } from './lib/thresholds.js';

const { rate, loginRate, duration } = size(
  { rate: 100, loginRate: 1, duration: 1800 },
  { rate: 50, loginRate: 1, duration: 30 },
);

export const options = {
  ...common,
  scenarios: {
    checks: constant('checks', { rate, duration }),
    visits: constant('visits', { rate: loginRate, duration }),
  },
  thresholds: flawless,
};

export const { setup, checks, visits, teardown } = steady;
export const handleSummary = (data) => report('soak', data);
