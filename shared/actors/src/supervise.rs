//! One supervised actor: made by a factory, made anew with back-off, drained on demand.

use std::time::{Duration, Instant};

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message};
use berth_telemetry::metric;
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::vitals::{Life, Vitals};

/// Asks an actor to end in good order: take nothing new, finish what runs, then stop its context.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Drain;

/// An actor that can be supervised.
pub trait Vital: Actor<Context = Context<Self>> + Handler<Drain> {
    /// The life it was made with.
    fn life(&self) -> &Life;

    /// What it is doing, for people and health; small, and without content.
    fn observe(&self) -> serde_json::Value;
}

/// The actor is not running; it may be back soon.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
#[error("the actor {0} is not running")]
pub struct Down(String);

/// Reaches the actor of the moment. Clones share.
#[derive(Debug)]
pub struct Supervised<A: Actor> {
    name: String,
    current: watch::Receiver<Option<Addr<A>>>,
    end: CancellationToken,
}

impl<A: Actor> Clone for Supervised<A> {
    fn clone(&self) -> Self {
        Self { name: self.name.clone(), current: self.current.clone(), end: self.end.clone() }
    }
}

impl<A: Vital> Supervised<A> {
    /// The running actor's address.
    ///
    /// # Errors
    /// When it is being restarted or has ended.
    pub fn addr(&self) -> Result<Addr<A>, Down> {
        self.current.borrow().clone().filter(Addr::connected).ok_or_else(|| Down(self.name.clone()))
    }

    /// Sends and waits for the answer; waits for room in the mailbox, and for an actor that is being restarted.
    ///
    /// # Errors
    /// When the actor ended for good, or ended while it handled this message.
    pub async fn send<M>(&self, message: M) -> Result<M::Result, Down>
    where
        M: Message + Send + 'static,
        M::Result: Send,
        A: Handler<M>,
        A::Context: actix::dev::ToEnvelope<A, M>,
    {
        let mut current = self.current.clone();
        loop {
            let addr = current.borrow_and_update().clone();
            if let Some(addr) = addr.filter(Addr::connected) {
                return addr.send(message).await.map_err(|_| Down(self.name.clone()));
            }
            if current.changed().await.is_err() {
                return Err(Down(self.name.clone()));
            }
        }
    }

    /// Drains the actor and does not start it again. Returns whether it ended within `limit`.
    pub async fn drain(&self, limit: Duration) -> bool {
        self.end.cancel();
        let mut current = self.current.clone();
        let drained = async {
            if let Ok(addr) = self.addr() {
                let _ = addr.send(Drain).await;
            }
            // Closed: the supervising task has ended. None: so has the actor.
            while current.borrow_and_update().is_some() && current.changed().await.is_ok() {}
        };
        let ended = tokio::time::timeout(limit, drained).await.is_ok();
        if !ended {
            warn!(actor = self.name, limit_s = limit.as_secs(), "actor did not drain in time");
        }
        ended
    }
}

/// An actor that ran for so long before it stopped starts its back-off anew.
const STABLE: Duration = Duration::from_secs(60);

/// Runs the actor that `factory` makes on this thread's arbiter, with a mailbox of `mailbox` messages, until
/// [`Supervised::drain`].
pub fn supervise<A, F>(vitals: &Vitals, name: &str, mailbox: usize, mut factory: F) -> Supervised<A>
where
    A: Vital,
    F: FnMut(Life) -> A + 'static,
{
    let (publish, current) = watch::channel(None);
    let handle = Supervised { name: name.into(), current, end: CancellationToken::new() };
    let (vitals, name, end) = (vitals.clone(), handle.name.clone(), handle.end.clone());
    let mut start = move |vitals: &Vitals, name: &str| {
        let (life, ended) = vitals.born(name);
        let addr = A::create(|ctx| {
            ctx.set_mailbox_capacity(mailbox);
            ctx.run_interval(Duration::from_secs(1), |actor, _| actor.life().beat(actor.observe()));
            factory(life)
        });
        (addr, ended)
    };
    // The first is made here, so that the handle reaches it at once.
    let (addr, mut ended) = start(&vitals, &name);
    publish.send_replace(Some(addr));
    actix_rt::spawn(async move {
        let mut backoff = Backoff::default();
        loop {
            let began = Instant::now();
            let _ = (&mut ended).await;
            publish.send_replace(None);
            if end.is_cancelled() {
                info!(actor = name, "actor ended");
                vitals.forget(&name);
                return;
            }
            if began.elapsed() > STABLE {
                backoff.reset();
            }
            let delay = backoff.next_delay();
            vitals.restarted(&name);
            metrics::counter!(metric::ACTOR_RESTARTS, "actor" => name.clone()).increment(1);
            warn!(actor = name, delay_ms = delay.as_millis(), "actor stopped unasked; restarting it");
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = end.cancelled() => { vitals.forget(&name); return; }
            }
            let (addr, next) = start(&vitals, &name);
            ended = next;
            publish.send_replace(Some(addr));
        }
    });
    handle
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use actix::ActorContext;

    use super::*;

    struct Worker {
        life: Life,
        born: u32,
    }

    impl Actor for Worker {
        type Context = Context<Self>;
    }

    impl Vital for Worker {
        fn life(&self) -> &Life {
            &self.life
        }
        fn observe(&self) -> serde_json::Value {
            serde_json::json!({ "born": self.born })
        }
    }

    impl Handler<Drain> for Worker {
        type Result = ();
        fn handle(&mut self, _: Drain, ctx: &mut Context<Self>) {
            ctx.stop();
        }
    }

    #[derive(Message)]
    #[rtype(result = "u32")]
    struct WhichOne;
    impl Handler<WhichOne> for Worker {
        type Result = u32;
        fn handle(&mut self, _: WhichOne, _: &mut Context<Self>) -> u32 {
            self.born
        }
    }

    #[derive(Message)]
    #[rtype(result = "()")]
    struct Fall;
    impl Handler<Fall> for Worker {
        type Result = ();
        fn handle(&mut self, _: Fall, _: &mut Context<Self>) {
            panic!("falling on purpose");
        }
    }

    fn worker(vitals: &Vitals) -> Supervised<Worker> {
        let births = Arc::new(AtomicU32::new(0));
        supervise(vitals, "worker", 8, move |life| Worker {
            life,
            born: births.fetch_add(1, Ordering::SeqCst) + 1,
        })
    }

    #[actix::test]
    async fn an_actor_that_panics_is_made_anew() {
        let vitals = Vitals::default();
        let worker = worker(&vitals);
        assert_eq!(worker.send(WhichOne).await, Ok(1));
        assert!(worker.send(Fall).await.is_err());
        assert_eq!(worker.send(WhichOne).await, Ok(2));
        assert_eq!(vitals.signs()[0].restarts, 1);
        assert!(vitals.signs()[0].healthy);
    }

    #[actix::test]
    async fn a_drained_actor_stays_down_and_is_forgotten() {
        let vitals = Vitals::default();
        let worker = worker(&vitals);
        assert!(worker.drain(Duration::from_secs(5)).await);
        assert_eq!(worker.send(WhichOne).await, Err(Down("worker".into())));
        assert!(vitals.signs().is_empty());
    }
}
