//! An actor that does one thing in a loop of its own, supervised like any other.

use std::rc::Rc;
use std::time::Duration;

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, WrapFuture};
use berth_actors::{Drain, Life, Supervised, Vital, Vitals, supervise};
use futures::future::LocalBoxFuture;

/// Makes the loop; called again when it fell.
type Work = Rc<dyn Fn() -> LocalBoxFuture<'static, ()>>;
/// What it is doing.
type Observe = Rc<dyn Fn() -> serde_json::Value>;

pub(crate) struct Worker {
    life: Life,
    work: Work,
    observe: Observe,
}

impl Worker {
    /// Runs `work` under supervision as the actor `name`.
    pub(crate) fn supervise(vitals: &Vitals, name: &str, work: Work, observe: Observe) -> Supervised<Self> {
        supervise(vitals, name, 4, move |life| Self {
            life,
            work: Rc::clone(&work),
            observe: Rc::clone(&observe),
        })
    }
}

/// How long an actor without anything to finish may take to end.
pub(crate) const END: Duration = Duration::from_secs(2);

impl Actor for Worker {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.spawn((self.work)().into_actor(self).map(|(), _, ctx: &mut Context<Self>| ctx.stop()));
    }
}

impl Vital for Worker {
    fn life(&self) -> &Life {
        &self.life
    }

    fn observe(&self) -> serde_json::Value {
        (self.observe)()
    }
}

impl Handler<Drain> for Worker {
    type Result = ();

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        ctx.stop();
    }
}
