//! The account of a GPU's memory: what was promised, what its engines were measured to hold, and what nobody explains.

use std::collections::BTreeMap;

use berth_wire::EngineId;

use crate::gauge::Reading;

/// A GPU's account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Account {
    /// Bytes by engine, as far as they can be told apart.
    pub(crate) engines: BTreeMap<EngineId, u64>,
    /// Bytes of other programs by process, largest first.
    pub(crate) strangers: Vec<(u32, u64)>,
    /// Bytes that are neither an engine's nor room that was promised to one: other programs, seen or not.
    pub(crate) unexplained: u64,
    /// Bytes that servers of others hold for our models.
    pub(crate) lent: u64,
}

impl Account {
    /// Bytes of all engines.
    pub(crate) fn held(&self) -> u64 {
        self.engines.values().fold(self.lent, |sum, bytes| sum.saturating_add(*bytes))
    }

    /// Takes `bytes` that servers of others say they hold for us out of what nobody explains.
    pub(crate) fn lend(&mut self, bytes: u64) {
        self.lent = bytes.min(self.unexplained);
        self.unexplained -= self.lent;
    }

    /// Who else is on it, for a person.
    pub(crate) fn who(&self, name: impl Fn(u32) -> String) -> String {
        let shown: Vec<String> = self
            .strangers
            .iter()
            .take(3)
            .map(|&(pid, bytes)| format!("{} (process {pid}, {} MiB)", name(pid), bytes >> 20))
            .collect();
        match shown.as_slice() {
            [] => "something that cannot be seen from here".into(),
            [only] => only.clone(),
            several => several.join(", "),
        }
    }
}

/// Draws up the account of a GPU on which `reserved` bytes are promised to engines; `owner` tells whose a process is.
pub(crate) fn account(reading: &Reading, reserved: u64, owner: impl Fn(u32) -> Option<EngineId>) -> Account {
    let used = reading.usable.saturating_sub(reading.free);
    let mut account = Account::default();
    let mut seen = 0_u64;
    for holder in &reading.holders {
        let Some(bytes) = holder.bytes else { continue };
        seen = seen.saturating_add(bytes);
        match owner(holder.pid) {
            Some(engine) => {
                let sum = account.engines.entry(engine).or_default();
                *sum = sum.saturating_add(bytes);
            }
            None => account.strangers.push((holder.pid, bytes)),
        }
    }
    account.strangers.sort_by_key(|&(pid, bytes)| (std::cmp::Reverse(bytes), pid));
    let strangers = account.strangers.iter().fold(0_u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
    // From within a container processes of others are not listed, its own neighbours among them: what cannot be seen
    // is an engine's for as long as the engines hold less than was promised to them.
    let unseen = used.saturating_sub(seen);
    let promised = reserved.saturating_sub(account.held());
    account.unexplained = strangers.saturating_add(unseen.saturating_sub(promised)).min(used);
    account
}

#[cfg(test)]
mod tests {
    use berth_wire::{AcceleratorKind, Epoch};
    use proptest::prelude::*;

    use super::*;
    use crate::gauge::Holder;

    const GIB: u64 = 1 << 30;

    fn engine(n: u32) -> EngineId {
        EngineId::new(Epoch(1), n)
    }

    fn reading(used: u64, holders: &[(u32, Option<u64>)]) -> Reading {
        Reading {
            id: "GPU-1".into(),
            kind: AcceleratorKind::Nvidia,
            name: "test".into(),
            usable: 80 * GIB,
            free: (80 * GIB).saturating_sub(used),
            holders: holders.iter().map(|&(pid, bytes)| Holder { pid, bytes }).collect(),
        }
    }

    #[test]
    fn what_engines_hold_is_told_apart_from_what_others_hold() {
        let reading = reading(30 * GIB, &[(10, Some(20 * GIB)), (11, Some(2 * GIB)), (99, Some(8 * GIB))]);
        let owner = |pid| (pid < 99).then(|| engine(1));
        let account = account(&reading, 24 * GIB, owner);
        assert_eq!((account.held(), account.unexplained), (22 * GIB, 8 * GIB));
        assert_eq!(account.who(|_| "python".into()), "python (process 99, 8192 MiB)");
    }

    #[test]
    fn a_process_that_cannot_be_seen_is_an_engines_up_to_what_was_promised() {
        let unseen = reading(30 * GIB, &[]);
        assert_eq!(account(&unseen, 40 * GIB, |_| None).unexplained, 0);
        assert_eq!(account(&unseen, 24 * GIB, |_| None).unexplained, 6 * GIB);
        assert_eq!(
            account(&unseen, 0, |_| None).who(|_| String::new()),
            "something that cannot be seen from here"
        );
    }

    #[test]
    fn a_driver_that_tells_no_sizes_leaves_them_unseen() {
        let hidden = reading(10 * GIB, &[(10, None)]);
        assert_eq!(account(&hidden, 10 * GIB, |_| Some(engine(1))).unexplained, 0);
    }

    proptest! {
        /// Nothing is counted twice: engines and others together are never more than is used, if the driver adds up.
        #[test]
        fn an_account_never_holds_more_than_is_used(
            holders in prop::collection::vec((0_u32..20, prop::option::of(0_u64..GIB)), 0..12),
            more in 0_u64..GIB,
            reserved in 0_u64..(40 * GIB),
        ) {
            let seen: u64 = holders.iter().filter_map(|holder| holder.1).sum();
            let account = account(&reading(seen + more, &holders), reserved, |pid| (pid < 10).then(|| engine(pid)));
            prop_assert!(account.held() + account.unexplained <= seen + more);
        }
    }
}
