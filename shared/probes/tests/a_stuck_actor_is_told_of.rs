//! An actor that does not come back from a message holds its whole thread, and is told of all the same.

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use actix::{Actor, ActorContext, Context, Handler, Message};
    use berth_actors::{Drain, Life, Vital, Vitals, supervise};
    use berth_probes::{Component, Probes};
    use berth_testkit::wait::until;

    struct Worker(Life);

    impl Actor for Worker {
        type Context = Context<Self>;
    }

    impl Vital for Worker {
        fn life(&self) -> &Life {
            &self.0
        }
        fn observe(&self) -> serde_json::Value {
            serde_json::Value::Null
        }
    }

    impl Handler<Drain> for Worker {
        type Result = ();
        fn handle(&mut self, _: Drain, ctx: &mut Context<Self>) {
            ctx.stop();
        }
    }

    #[derive(Message)]
    #[rtype(result = "()")]
    struct Block(mpsc::Receiver<()>);

    impl Handler<Block> for Worker {
        type Result = ();
        fn handle(&mut self, Block(until): Block, _: &mut Context<Self>) {
            let _ = until.recv();
        }
    }

    #[tokio::test]
    async fn livez_fails_while_an_actor_is_blocked_and_recovers_with_it() {
        let vitals = Vitals::with_stall(Duration::from_secs(2));
        let (tell, told) = mpsc::channel();
        let (release, held) = mpsc::channel();
        std::thread::spawn({
            let vitals = vitals.clone();
            move || {
                actix_rt::System::new().block_on(async move {
                    let worker = supervise(&vitals, "worker", 8, Worker);
                    let part = || vec![Component::new("bus", false, "connected", "not connected")];
                    let any = "127.0.0.1:0".parse().ok();
                    let listener = Probes::new("test", vitals, part).listen(any, "listen").unwrap().unwrap();
                    tell.send((listener.address, worker)).unwrap();
                    std::future::pending::<()>().await;
                });
            }
        });
        let (address, worker) = told.recv().unwrap();
        let get = async |path: &str| reqwest::get(format!("http://{address}{path}")).await.unwrap();
        assert_eq!(get("/livez").await.status(), 200);
        let ready = get("/readyz").await;
        assert_eq!(ready.status(), 503, "being alive is not being ready");
        let ready: serde_json::Value = ready.json().await.unwrap();
        assert_eq!(ready["components"][0]["detail"], "not connected");

        worker.addr().unwrap().do_send(Block(held));
        let patience = Duration::from_secs(15);
        until("the blocked actor is told of", patience, async || get("/livez").await.status() == 503).await;
        let said: serde_json::Value = get("/livez").await.json().await.unwrap();
        assert_eq!((&said["status"], &said["actors"][0]["name"]), (&"stuck".into(), &"worker".into()));
        release.send(()).unwrap();
        until("it makes progress again", patience, async || get("/livez").await.status() == 200).await;
    }
}
