//! How many tokens a second an engine gives.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Over so long a time, at least, tokens are counted: what is shown is written for everybody to see each time.
const WINDOW: Duration = Duration::from_secs(5);

/// The output tokens of an engine. Counting one is an addition.
#[derive(Debug)]
pub(crate) struct Pace {
    tokens: Cell<u64>,
    since: Cell<Instant>,
    per_second: Cell<f64>,
}

impl Pace {
    pub(crate) fn new(now: Instant) -> Self {
        Self { tokens: Cell::new(0), since: Cell::new(now), per_second: Cell::new(0.0) }
    }

    /// Of an answer of which `before` tokens were counted, there are `now`.
    pub(crate) fn count(&self, before: u64, now: u64) {
        self.tokens.set(self.tokens.get().saturating_add(now).saturating_sub(before));
    }

    /// As last looked at, to one decimal.
    pub(crate) fn per_second(&self) -> f64 {
        self.per_second.get()
    }

    /// Looks again once the window is over, and says whether what comes of it is news: a tenth more or less.
    pub(crate) fn look(&self, now: Instant) -> bool {
        let took = now.saturating_duration_since(self.since.get());
        if took < WINDOW {
            return false;
        }
        self.since.set(now);
        let pace = (self.tokens.take() as f64 / took.as_secs_f64() * 10.0).round() / 10.0;
        let told = self.per_second.get();
        let news = (pace == 0.0) != (told == 0.0) || (pace - told).abs() > told / 10.0;
        if news {
            self.per_second.set(pace);
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_of_the_last_seconds_and_goes_back_to_none() {
        let start = Instant::now();
        let pace = Pace::new(start);
        let at = |seconds| start + Duration::from_secs(seconds);
        pace.count(0, 22);
        assert!(!pace.look(at(4)), "the window is not over");
        pace.count(22, 50);
        assert!(pace.look(at(5)));
        assert_eq!(pace.per_second(), 10.0);
        pace.count(0, 52);
        assert!(!pace.look(at(10)), "about the same is no news");
        pace.count(5, 14);
        pace.count(14, 12);
        assert!(pace.look(at(16)));
        assert_eq!(pace.per_second(), 1.2);
        assert!(pace.look(at(21)) && pace.per_second() == 0.0, "nothing came");
        assert!(!pace.look(at(26)), "and nothing again");
    }
}
