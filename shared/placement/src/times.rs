//! How long jobs of a model take, as a distribution: what is left of one that runs depends on how long it has run.

use std::time::Duration;

/// The first class ends here, in seconds; each further one lasts half as long again.
const FIRST: f64 = 0.05;
const FACTOR: f64 = 1.5;
const CLASSES: usize = 32;
/// With so many counted, all count half: what was long ago is forgotten.
const FULL: u32 = 256;
/// So few say nothing of what is longer than all of them.
const FEW: u32 = 4;

/// Counts of durations by class.
#[derive(Debug, Clone, Default)]
pub(crate) struct Times {
    counts: Vec<u32>,
    total: u32,
}

impl Times {
    pub(crate) fn count(&mut self, took: Duration) {
        self.counts.resize(CLASSES, 0);
        let class = (libm::log(took.as_secs_f64().max(FIRST) / FIRST) / libm::log(FACTOR)) as usize;
        if let Some(count) = self.counts.get_mut(class.min(CLASSES - 1)) {
            *count += 1;
            self.total += 1;
        }
        if self.total >= FULL {
            for count in &mut self.counts {
                *count = count.div_ceil(2);
            }
            self.total = self.counts.iter().sum();
        }
    }

    /// Seconds that are left of a job that has run for so long and is of those that take `mean` seconds on average;
    /// `None`: it takes longer than any that is known.
    pub(crate) fn left(&self, elapsed: f64, mean: f64) -> Option<f64> {
        let (mut weight, mut sum) = (0.0, 0.0);
        let mut from = FIRST;
        for count in &self.counts {
            let to = from * FACTOR;
            if to > elapsed && *count > 0 {
                let middle = (from.max(elapsed) + to) / 2.0;
                weight += f64::from(*count);
                sum += f64::from(*count) * (middle - elapsed);
            }
            from = to;
        }
        if weight > 0.0 {
            return Some(sum / weight);
        }
        // Nothing of this length was seen; a few samples say little of what is somewhat longer.
        let usual = mean * if self.total < FEW { 4.0 } else { 2.0 };
        (elapsed < usual).then_some(mean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(seconds: &[u64]) -> Times {
        let mut times = Times::default();
        for took in seconds {
            times.count(Duration::from_secs(*took));
        }
        times
    }

    #[test]
    fn the_longer_a_job_has_run_the_longer_it_is_expected_to_run() {
        let times = times(&[2, 2, 2, 2, 2, 2, 2, 2, 2, 100]);
        let young = times.left(0.0, 11.8).unwrap();
        assert!((8.0..16.0).contains(&young), "{young}");
        let old = times.left(10.0, 11.8).unwrap();
        assert!((70.0..110.0).contains(&old), "it is no short one: {old}");
    }

    #[test]
    fn of_one_that_takes_longer_than_all_nothing_is_known() {
        let times = times(&[2, 2, 3, 2, 2]);
        assert!(times.left(2.5, 2.0).is_some());
        assert_eq!(times.left(60.0, 2.0), None);
        assert_eq!(Times::default().left(3.0, 2.0), Some(2.0), "one that was told of by an earlier leader");
        assert_eq!(Times::default().left(9.0, 2.0), None);
    }

    #[test]
    fn what_is_long_ago_is_forgotten() {
        let mut times = times(&[60; 200]);
        for _ in 0..2000 {
            times.count(Duration::from_secs(1));
        }
        let left = times.left(0.0, 1.0).unwrap();
        assert!(left < 2.0, "{left}");
    }
}
