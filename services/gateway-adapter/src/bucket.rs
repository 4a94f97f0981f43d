//! A token bucket in whole numbers, with costs that differ and that are corrected afterwards.

use std::time::{Duration, Instant};

/// One token, in parts: with so many, a limit per minute refills by as many parts in a nanosecond as the limit is.
const PARTS: i128 = 60_000_000_000;

/// What may be used within a minute. It begins full, refills evenly, and may owe: what an answer used is known only
/// at its end.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    limit: u32,
    /// At most `limit`; below zero it owes.
    parts: i128,
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub(crate) fn new(limit: u32, now: Instant) -> Self {
        Self { limit, parts: i128::from(limit) * PARTS, at: now }
    }

    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }

    /// Another limit: what has been used stays used.
    pub(crate) fn set_limit(&mut self, limit: u32, now: Instant) {
        self.refill(now);
        self.parts += (i128::from(limit) - i128::from(self.limit)) * PARTS;
        self.limit = limit;
    }

    /// Takes `cost`, or says how long to wait until it is there. A cost above the limit is taken of a full bucket, and
    /// the rest is owed: it would never be let through else.
    pub(crate) fn take(&mut self, cost: u64, now: Instant) -> Result<(), Duration> {
        let missing = self.missing(cost, now);
        if missing > 0 {
            return Err(self.time_for(missing));
        }
        self.charge(cost);
        Ok(())
    }

    /// Takes `cost` unasked.
    pub(crate) fn charge(&mut self, cost: u64) {
        self.parts -= i128::from(cost) * PARTS;
    }

    /// Puts back what was not used.
    pub(crate) fn refund(&mut self, cost: u64, now: Instant) {
        self.refill(now);
        self.parts = (self.parts + i128::from(cost) * PARTS).min(self.full());
    }

    /// Whole tokens that are left.
    pub(crate) fn left(&mut self, now: Instant) -> u32 {
        self.refill(now);
        u32::try_from((self.parts / PARTS).max(0)).unwrap_or(u32::MAX)
    }

    /// Until it is full.
    pub(crate) fn until_full(&mut self, now: Instant) -> Duration {
        self.refill(now);
        self.time_for(self.full() - self.parts)
    }

    fn missing(&mut self, cost: u64, now: Instant) -> i128 {
        self.refill(now);
        i128::from(cost.min(u64::from(self.limit))) * PARTS - self.parts
    }

    fn full(&self) -> i128 {
        i128::from(self.limit) * PARTS
    }

    fn time_for(&self, parts: i128) -> Duration {
        let each = i128::from(self.limit.max(1));
        let nanos = (parts.max(0) + each - 1) / each;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn refill(&mut self, now: Instant) {
        let nanos = i128::try_from(now.saturating_duration_since(self.at).as_nanos()).unwrap_or(i128::MAX);
        let more = nanos.saturating_mul(i128::from(self.limit));
        self.parts = self.parts.saturating_add(more).min(self.full());
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Wait(u64),
        Take(u64),
        /// Of what was taken last, so much is put back.
        Refund(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..90_000_u64).prop_map(Step::Wait),
            (0..50_u64).prop_map(Step::Take),
            (0..50_u64).prop_map(Step::Refund),
        ]
    }

    proptest! {
        /// However requests come, no span of time sees more than the limit at once and its rate on top.
        #[test]
        fn no_span_lets_through_more_than_a_full_bucket_and_what_refills(
            limit in 1_u32..100,
            steps in proptest::collection::vec(step(), 1..60),
        ) {
            let begin = Instant::now();
            let mut now = begin;
            let mut bucket = Bucket::new(limit, now);
            let mut taken: Vec<(Instant, u64)> = Vec::new();
            for step in steps {
                match step {
                    Step::Wait(ms) => now += Duration::from_millis(ms),
                    Step::Take(cost) => {
                        let cost = cost.min(u64::from(limit));
                        match bucket.take(cost, now) {
                            Ok(()) => taken.push((now, cost)),
                            Err(wait) => {
                                prop_assert!(wait > Duration::ZERO);
                                // It is let through at the time it was told, and not a moment before.
                                let early = now + wait - Duration::from_nanos(1);
                                prop_assert!(bucket.clone().take(cost, early).is_err());
                                prop_assert!(bucket.clone().take(cost, now + wait).is_ok());
                            }
                        }
                    }
                    Step::Refund(cost) => {
                        if let Some((_, last)) = taken.last_mut() {
                            let back = cost.min(*last);
                            *last -= back;
                            bucket.refund(back, now);
                        }
                    }
                }
                prop_assert!(bucket.left(now) <= limit);
                for (n, (from, _)) in taken.iter().enumerate() {
                    let used: u64 = taken[n..].iter().map(|(_, cost)| cost).sum();
                    let span = now.duration_since(*from).as_secs_f64();
                    let most = f64::from(limit) * (1.0 + span / 60.0) + 1e-6;
                    prop_assert!(used as f64 <= most, "{used} of {most} within {span} s");
                }
            }
        }

        /// What is owed is paid by time alone, whatever the limit becomes meanwhile.
        #[test]
        fn a_bucket_fills_when_it_says_it_will(
            limit in 1_u32..1000,
            owed in 0_u64..5000,
            later in 1_u32..1000,
        ) {
            let now = Instant::now();
            let mut bucket = Bucket::new(limit, now);
            bucket.charge(owed);
            bucket.set_limit(later, now);
            let wait = bucket.until_full(now);
            prop_assert_eq!(bucket.clone().left(now + wait), later);
            if wait > Duration::from_nanos(1) {
                let early = now + wait - Duration::from_nanos(1);
                prop_assert!(bucket.left(early) < later);
            }
        }
    }

    #[test]
    fn a_cost_above_the_limit_is_taken_of_a_full_bucket_and_owed() {
        let now = Instant::now();
        let mut bucket = Bucket::new(60, now);
        bucket.take(120, now).unwrap();
        assert_eq!(bucket.left(now), 0);
        assert_eq!(bucket.take(1, now).unwrap_err(), Duration::from_secs(61));
        assert_eq!(bucket.until_full(now), Duration::from_secs(120));
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing() {
        let now = Instant::now();
        let mut bucket = Bucket::new(60, now + Duration::from_secs(5));
        bucket.charge(60);
        assert_eq!(bucket.left(now), 0);
        assert_eq!(bucket.left(now + Duration::from_secs(6)), 1);
    }
}
