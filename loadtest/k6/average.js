// An ordinary day: checks at a constant rate, now and then somebody signs in, looks and signs out.
import { common, constant, size } from './lib/profiles.js';
import * as steady from './lib/steady.js';
import { report } from './lib/summary.js';
import { flawless } from './lib/thresholds.js';

const { rate, loginRate, duration } = size(
  { rate: 200, loginRate: 1, duration: 60 },
  { rate: 50, loginRate: 1, duration: 10 },
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
export const handleSummary = (data) => report('average', data);
