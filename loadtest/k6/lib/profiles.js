// Load profiles. k6 starts iterations at the given rate even if the fleet is slow, so that waiting clients don't hide a
// stall.
import { number, seconds } from './fleet.js';

const virtualUsers = (rate) => ({ preAllocatedVUs: Math.max(4, Math.ceil(rate / 10)), maxVUs: Math.max(50, rate) });

export function constant(exec, { rate, duration, ...more }) {
  return { executor: 'constant-arrival-rate', exec, rate, timeUnit: '1s', duration: `${duration}s`, ...virtualUsers(rate), ...more };
}

// steps: [[seconds, rate], …]
export function ramp(exec, start, steps) {
  const peak = Math.max(start, ...steps.map(([, rate]) => rate));
  return {
    executor: 'ramping-arrival-rate',
    exec,
    startRate: start,
    timeUnit: '1s',
    stages: steps.map(([duration, target]) => ({ duration: `${duration}s`, target })),
    ...virtualUsers(peak),
  };
}

// Every scenario has two sizes; SHORT=1 is for test suites.
const short = __ENV.SHORT === '1';
export const size = (full, brief) => ({
  rate: number('RATE', short ? brief.rate : full.rate),
  loginRate: number('LOGIN_RATE', short ? brief.loginRate : full.loginRate),
  duration: seconds('DURATION', short ? brief.duration : full.duration),
});

export const common = {
  setupTimeout: '180s',
  teardownTimeout: '180s',
  // Only tags that are used, because each tag costs memory and time.
  systemTags: ['scenario', 'name', 'status', 'error_code'],
  summaryTrendStats: ['count', 'min', 'med', 'avg', 'p(90)', 'p(95)', 'p(99)', 'p(99.9)', 'max'],
  userAgent: 'authfleet-loadtest',
};
