//! Who comes without a valid key: told in the log once for each address and minute, whatever they tried.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often an address is told of.
const EACH: Duration = Duration::from_secs(60);
/// Addresses that are remembered; beyond them nobody new is told of until some are forgotten.
const MOST: usize = 4096;

#[derive(Debug)]
struct Seen {
    told: Instant,
    /// Requests since then.
    more: u64,
}

/// The addresses of the last minute.
#[derive(Debug, Default)]
pub(crate) struct Knocks(Mutex<HashMap<IpAddr, Seen>>);

impl Knocks {
    /// Counts a request from there; if it is time to tell, how many came since that was done last.
    pub(crate) fn count(&self, from: IpAddr, now: Instant) -> Option<u64> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let old = |seen: &Seen| now.saturating_duration_since(seen.told) >= EACH;
        if let Some(known) = seen.get_mut(&from) {
            known.more += 1;
            let due = old(known).then_some(known.more);
            if due.is_some() {
                *known = Seen { told: now, more: 0 };
            }
            return due;
        }
        if seen.len() >= MOST {
            seen.retain(|_, seen| !old(seen));
            if seen.len() >= MOST {
                return None;
            }
        }
        seen.insert(from, Seen { told: now, more: 0 });
        Some(1)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(n: u32) -> IpAddr {
        Ipv4Addr::from(n).into()
    }

    #[test]
    fn each_address_is_told_of_once_a_minute_with_what_came_since() {
        let (knocks, at) = (Knocks::default(), Instant::now());
        let of = |from, second| knocks.count(address(from), at + Duration::from_secs(second));
        assert_eq!([of(1, 0), of(2, 0), of(1, 1), of(1, 59)], [Some(1), Some(1), None, None]);
        assert_eq!([of(1, 60), of(1, 61), of(2, 200)], [Some(3), None, Some(1)]);
    }

    #[test]
    fn a_crowd_of_addresses_takes_no_more_room_than_there_is() {
        let (knocks, at) = (Knocks::default(), Instant::now());
        let told = (0..10_000).filter(|n| knocks.count(address(*n), at).is_some()).count();
        assert_eq!(told, MOST);
        assert_eq!(knocks.count(address(20_000), at + EACH), Some(1), "the others are forgotten");
    }
}
