// The summary of a run: a few lines of text, and everything as JSON in the file that SUMMARY names.
const fixed = (value) => (value === undefined || value === null ? '-' : value.toFixed(value < 10 ? 2 : 0));

export function report(name, data, { lines = [], extra = {} } = {}) {
  const value = (metric, field) => data.metrics[metric]?.values?.[field];
  const missed = Object.entries(data.metrics).flatMap(([metric, { thresholds = {} }]) =>
    Object.entries(thresholds)
      .filter(([, { ok }]) => !ok)
      .map(([condition]) => `${metric}: ${condition}`),
  );
  const text = [
    '',
    `${name}: ${missed.length ? 'FAILED' : 'passed'}`,
    `  requests ${value('http_reqs', 'count') || 0}, failed ${value('authfleet_failed', 'count') || 0}, ` +
      `unavailable ${value('authfleet_unavailable', 'count') || 0}, shed ${value('authfleet_shed', 'count') || 0}, ` +
      `dropped by k6 ${value('dropped_iterations', 'count') || 0}`,
    `  session checks: p50 ${fixed(value('authfleet_check_ms', 'med'))} ms, p95 ${fixed(value('authfleet_check_ms', 'p(95)'))} ms, ` +
      `p99 ${fixed(value('authfleet_check_ms', 'p(99)'))} ms`,
    ...lines.map((line) => `  ${line}`),
    ...missed.map((line) => `  missed: ${line}`),
    '',
  ].join('\n');
  const files = { stdout: text };
  if (__ENV.SUMMARY) files[__ENV.SUMMARY] = JSON.stringify({ scenario: name, metrics: data.metrics, state: data.state, extra });
  return files;
}
