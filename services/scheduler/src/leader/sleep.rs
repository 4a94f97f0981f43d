//! Putting engines to sleep and waking them: each order is repeated until its host answers, unless a later one for
//! the same engine has taken its place.

use std::collections::BTreeMap;
use std::time::Duration;

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use berth_placement::Event;
use berth_wire::{EngineFailure, EngineId, HostId, Reservation};
use tracing::warn;

use super::Leader;
use crate::effects::{Answer, told};

/// How long before a host that did not answer is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// What an engine is told to do.
#[derive(Debug, Clone)]
pub(super) enum Order {
    /// Fall asleep.
    Sleep { reason: String },
    /// Wake.
    Wake { reservations: Vec<Reservation> },
}

/// The number of each engine's latest order that has not been answered.
#[derive(Debug, Default)]
pub(super) struct Orders {
    made: u64,
    latest: BTreeMap<EngineId, u64>,
}

impl Orders {
    fn make(&mut self, engine: EngineId) -> u64 {
        self.made += 1;
        self.latest.insert(engine, self.made);
        self.made
    }

    /// Another command takes the place of what the engine was told.
    pub(super) fn supersede(&mut self, engine: EngineId) {
        self.latest.remove(&engine);
    }

    fn stands(&self, engine: EngineId, number: u64) -> bool {
        self.latest.get(&engine) == Some(&number)
    }
}

impl Leader {
    /// Gives an order.
    pub(super) fn order(&mut self, engine: EngineId, host: HostId, order: Order, ctx: &mut Context<Self>) {
        let number = self.orders.make(engine);
        self.send_order(engine, host, order, number, ctx);
    }

    fn send_order(
        &mut self,
        engine: EngineId,
        host: HostId,
        order: Order,
        number: u64,
        ctx: &mut Context<Self>,
    ) {
        let (carrier, to, what) = (self.carrier.clone(), host.clone(), order.clone());
        let sent = async move {
            match what {
                Order::Sleep { reason } => carrier.sleep(&to, engine, reason).await,
                Order::Wake { reservations } => carrier.wake(&to, engine, reservations).await,
            }
        };
        ctx.spawn(sent.into_actor(self).map(move |answer, leader, ctx| {
            if !leader.orders.stands(engine, number) {
                return;
            }
            match answer {
                Answer::Taken => leader.orders.supersede(engine),
                Answer::Stale => leader.over.cancel(),
                Answer::Refused(why) => {
                    leader.orders.supersede(engine);
                    let why = told(why, &host);
                    warn!(%host, %engine, why, ?order, "an order was refused");
                    leader.feed(refused(engine, &order, why), ctx);
                }
                Answer::Unanswered(why) => {
                    warn!(%host, %engine, why, ?order, "an order was not answered; asking again");
                    leader.ask(host.clone(), ctx);
                    ctx.run_later(AGAIN, move |leader, ctx| {
                        if !leader.state.has_engine(engine) {
                            leader.orders.supersede(engine);
                        } else if leader.orders.stands(engine, number) {
                            leader.send_order(engine, host, order, number, ctx);
                        }
                    });
                }
            }
        }));
    }
}

fn refused(engine: EngineId, order: &Order, why: String) -> Event {
    match order {
        Order::Sleep { .. } => Event::SleepRefused { engine, why },
        Order::Wake { .. } => Event::StartRefused {
            engine,
            failure: EngineFailure { message: why, permanent: false, was_ready: false },
            silent: false,
        },
    }
}

#[cfg(test)]
mod tests {
    use berth_wire::Epoch;

    use super::*;

    #[test]
    fn a_later_order_takes_the_place_of_an_earlier_one() {
        let engine = EngineId::new(Epoch(1), 1);
        let mut orders = Orders::default();
        let sleep = orders.make(engine);
        assert!(orders.stands(engine, sleep));
        let wake = orders.make(engine);
        assert!(!orders.stands(engine, sleep) && orders.stands(engine, wake));
        orders.supersede(engine);
        assert!(!orders.stands(engine, wake));
    }

    #[test]
    fn the_core_is_told_what_was_refused() {
        let engine = EngineId::new(Epoch(1), 1);
        let sleep = refused(engine, &Order::Sleep { reason: "room".into() }, "no".into());
        assert_eq!(sleep, Event::SleepRefused { engine, why: "no".into() });
        let wake = refused(engine, &Order::Wake { reservations: Vec::new() }, "no".into());
        assert!(matches!(wake, Event::StartRefused { failure, .. } if failure.message == "no"));
    }
}
