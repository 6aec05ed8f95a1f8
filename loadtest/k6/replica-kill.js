// Session checks through the balancer while replicas are killed (SIGKILL). None may fail. There are no logins, because
// a balancer must not retry a POST that a killed replica may have carried out.
import { edge } from './lib/fleet.js';
import { common, constant, size } from './lib/profiles.js';
import { report } from './lib/summary.js';
import { flawless } from './lib/thresholds.js';
import * as traffic from './lib/traffic.js';

if (!edge) throw new Error('replica-kill needs EDGE: without a balancer, requests to a killed replica fail');

const { rate, duration } = size({ rate: 150, loginRate: 0, duration: 45 }, { rate: 80, loginRate: 0, duration: 16 });

export const options = { ...common, scenarios: { checks: constant('checks', { rate, duration }) }, thresholds: flawless };

export const { setup, checks, teardown } = traffic;
export const handleSummary = (data) => report('replica-kill', data);
