/**
 * The other side's clock as seen from ours, from pings that carry four instants (RFC 5905, section 8).
 *
 * offset = ((t1 - t0) + (t2 - t3)) / 2, and the truth lies within half the round trip of it, however unequal the two
 * ways are. Each sample's error grows with its age, as quartz drifts; the sample with the smallest error now is used.
 * A sample that contradicts the ones before it (one clock was set) throws them away.
 *
 * Guarantees: while the clocks drift by less than driftPpm against each other, toMasterUs never answers a later instant
 * than the truth. Pure; instants are microseconds.
 */

/** Two quartzes of 50 ppm and a clock being slewed on top. */
export const driftPpm = 500;
const maxSamples = 8;

export interface ClockSample {
  /** Sent, agent's clock. */
  agentSentUs: number;
  /** Received, master's clock. */
  masterReceivedUs: number;
  /** Answered, master's clock. */
  masterSentUs: number;
  /** Answer received, agent's clock. */
  agentReceivedUs: number;
}

export interface ClockOffset {
  add(sample: ClockSample): void;
  /** master's clock - agent's clock, and how far off that may be at this instant. undefined before the first sample. */
  at(agentUs: number): { offsetUs: number; errorUs: number } | undefined;
  /** The master's clock at that instant of ours, rounded to the early side by the whole error. */
  toMasterUs(agentUs: number): number | undefined;
}

export function clockOffset(): ClockOffset {
  let samples: { offsetUs: number; halfTripUs: number; atUs: number }[] = [];

  const errorAt = (sample: { halfTripUs: number; atUs: number }, agentUs: number): number =>
    sample.halfTripUs + (Math.abs(agentUs - sample.atUs) * driftPpm) / 1e6;

  const offset: ClockOffset = {
    add({ agentSentUs, masterReceivedUs, masterSentUs, agentReceivedUs }) {
      const tripUs = agentReceivedUs - agentSentUs - (masterSentUs - masterReceivedUs);
      // A clock was set while the ping was under way: it tells nothing.
      if (tripUs < 0 || masterSentUs < masterReceivedUs) return;
      const offsetUs = (masterReceivedUs - agentSentUs + (masterSentUs - agentReceivedUs)) / 2;
      const sample = { offsetUs, halfTripUs: tripUs / 2, atUs: agentReceivedUs };
      const before = offset.at(agentReceivedUs);
      // Both hold the truth, so they must overlap; a microsecond more for rounding.
      const agrees =
        before === undefined || Math.abs(before.offsetUs - offsetUs) <= before.errorUs + sample.halfTripUs + 1;
      samples = agrees ? [...samples.slice(1 - maxSamples), sample] : [sample];
    },
    at(agentUs) {
      let best: { offsetUs: number; errorUs: number } | undefined;
      for (const sample of samples) {
        const errorUs = errorAt(sample, agentUs);
        if (best === undefined || errorUs < best.errorUs) best = { offsetUs: sample.offsetUs, errorUs };
      }
      return best;
    },
    toMasterUs(agentUs) {
      const now = offset.at(agentUs);
      return now === undefined ? undefined : Math.floor(agentUs + now.offsetUs - now.errorUs);
    },
  };
  return offset;
}
