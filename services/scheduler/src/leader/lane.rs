//! Opening and closing express lanes: each word is repeated until its host answers or a later one takes its place.
//!
//! Jobs of an earlier term may wait in the stream: no lane is opened before it has been read.

use std::collections::BTreeMap;
use std::time::Duration;

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use berth_wire::{EngineId, HostId};
use tracing::{debug, warn};

use super::Leader;
use crate::effects::Answer;

/// How long before a host that did not answer is told again.
const AGAIN: Duration = Duration::from_secs(1);

/// The last word about each lane, while its host has not acknowledged it.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    /// Words so far; a host takes none with a smaller number than it has heard.
    said: u64,
    latest: BTreeMap<EngineId, u64>,
    /// The stream has been read as it was when this term began.
    read: bool,
    /// Lanes to be opened then.
    held: BTreeMap<EngineId, HostId>,
}

impl Lanes {
    /// Numbers a word; `None` if it has to wait for the stream.
    fn say(&mut self, engine: EngineId, host: &HostId, open: bool) -> Option<u64> {
        self.held.remove(&engine);
        if open && !self.read {
            self.held.insert(engine, host.clone());
            return None;
        }
        self.said += 1;
        self.latest.insert(engine, self.said);
        Some(self.said)
    }

    fn stands(&self, engine: EngineId, number: u64) -> bool {
        self.latest.get(&engine) == Some(&number)
    }

    fn heard(&mut self, engine: EngineId, number: u64) {
        if self.stands(engine, number) {
            self.latest.remove(&engine);
        }
    }
}

impl Leader {
    /// Has a lane opened or closed.
    pub(super) fn lane(&mut self, engine: EngineId, host: HostId, open: bool, ctx: &mut Context<Self>) {
        if let Some(number) = self.lanes.say(engine, &host, open) {
            self.say_lane(engine, host, number, open, ctx);
        }
    }

    fn say_lane(&mut self, engine: EngineId, host: HostId, number: u64, open: bool, ctx: &mut Context<Self>) {
        let (carrier, to) = (self.carrier.clone(), host.clone());
        let said = async move { carrier.lane(&to, engine, number, open).await };
        ctx.spawn(said.into_actor(self).map(move |answer, leader, ctx| match answer {
            Answer::Taken => leader.lanes.heard(engine, number),
            Answer::Stale => leader.over.cancel(),
            Answer::Refused(why) => {
                // The engine is gone; a report of that is on its way.
                debug!(%host, %engine, ?why, "a lane was not changed");
                leader.lanes.heard(engine, number);
            }
            Answer::Unanswered(why) => {
                if !leader.lanes.stands(engine, number) {
                    return;
                }
                warn!(%host, %engine, why, open, "a host was not told of its lane; telling it again");
                ctx.run_later(AGAIN, move |leader, ctx| {
                    if !leader.state.has_engine(engine) {
                        leader.lanes.heard(engine, number);
                    } else if leader.lanes.stands(engine, number) {
                        leader.say_lane(engine, host, number, open, ctx);
                    }
                });
            }
        }));
    }

    /// Every job that waited when this term began is in the books.
    pub(super) fn stream_read(&mut self, ctx: &mut Context<Self>) {
        if std::mem::replace(&mut self.lanes.read, true) {
            return;
        }
        for (engine, host) in std::mem::take(&mut self.lanes.held) {
            self.lane(engine, host, true, ctx);
        }
    }
}

#[cfg(test)]
mod tests {
    use berth_wire::Epoch;

    use super::*;

    #[test]
    fn no_lane_is_opened_before_the_stream_is_read_and_a_close_takes_that_back() {
        let (one, other, host) = (EngineId::new(Epoch(1), 1), EngineId::new(Epoch(1), 2), HostId::from("h"));
        let mut lanes = Lanes::default();
        assert_eq!(lanes.say(one, &host, true), None);
        assert_eq!(lanes.say(other, &host, true), None);
        let closed = lanes.say(one, &host, false).unwrap();
        assert!(lanes.stands(one, closed));
        assert_eq!(lanes.held.keys().collect::<Vec<_>>(), [&other]);
    }

    #[test]
    fn a_later_word_takes_the_place_of_an_earlier_one() {
        let (engine, host) = (EngineId::new(Epoch(1), 1), HostId::from("h"));
        let mut lanes = Lanes { read: true, ..Lanes::default() };
        let open = lanes.say(engine, &host, true).unwrap();
        let close = lanes.say(engine, &host, false).unwrap();
        assert!(close > open);
        lanes.heard(engine, open);
        assert!(lanes.stands(engine, close), "the answer to the earlier one settles nothing");
    }
}
