//! Engines' logs, read over the bus.

use std::time::Duration;

use berth_testkit::wait::until;
use berth_wire::{EngineId, LogAck, LogPiece, ReadLog, Reply, Verb};
use futures::StreamExt;

use crate::containers::{fleet as docker_fleet, llama, parts};
use crate::fixture::{Fleet, WAIT, process};

/// One who reads a log.
struct Reader {
    pieces: async_nats::Subscriber,
    text: String,
    skipped: u64,
    end: Option<String>,
}

impl Reader {
    async fn open(fleet: &Fleet, engine: EngineId, tail: u32, follow: bool) -> Result<Self, String> {
        let to = fleet.bus.client.new_inbox();
        let pieces = fleet.bus.subscribe(to.clone()).await.unwrap();
        match fleet.command(Verb::Logs, &ReadLog { engine, tail, follow, to }).await {
            Reply::Ok => Ok(Self { pieces, text: String::new(), skipped: 0, end: None }),
            Reply::Refused { message } => Err(message),
            other => panic!("{other:?}"),
        }
    }

    /// Takes one piece, and says whether more are wanted.
    async fn piece(&mut self, fleet: &Fleet, more: bool) -> usize {
        let message = tokio::time::timeout(WAIT, self.pieces.next()).await.unwrap().unwrap();
        let piece: LogPiece = berth_wire::decode(&message.payload).unwrap();
        self.text.push_str(std::str::from_utf8(&piece.lines).unwrap());
        self.skipped += piece.skipped;
        self.end = piece.end;
        fleet.bus.reply(message.reply, &LogAck { more }).await.unwrap();
        piece.lines.len()
    }

    async fn until(&mut self, fleet: &Fleet, word: &str) {
        while !self.text.contains(word) {
            assert_eq!(self.end, None, "no `{word}` in:\n{}", self.text);
            self.piece(fleet, true).await;
        }
    }

    async fn all(&mut self, fleet: &Fleet) {
        while self.end.is_none() {
            self.piece(fleet, true).await;
        }
    }
}

/// Says so much, and serves nothing.
fn talker(script: &str) -> berth_wire::ModelSpec {
    let mut model = process(&["sh", "-c", script, "{port}"]);
    model.engine.env = vec!["BERTH_TEST_SECRET=hunter2hunter2".into()];
    model
}

#[actix::test]
async fn a_container_s_log_is_read_and_followed_to_its_end_without_its_secrets() {
    let parts = parts();
    let mut fleet = docker_fleet("docker-logs").await;
    let mut model = llama(&parts);
    // It says what it was given.
    model.engine.env = vec!["BERTH_TEST_SECRET=served-as-a-secret".into()];
    model.engine.args.extend(["--alias", "served-as-a-secret", "-v"].map(str::to_owned));
    let engine = fleet.ready_engine(model).await;
    let mut short = Reader::open(&fleet, engine, 3, false).await.unwrap();
    short.all(&fleet).await;
    assert_eq!((short.text.lines().count(), short.end.as_deref()), (3, Some("that is all")));
    let mut whole = Reader::open(&fleet, engine, 10_000, true).await.unwrap();
    whole.until(&fleet, "listening").await;
    assert!(!whole.text.contains("served-as-a-secret"), "{}", whole.text);
    fleet.stop_engine(engine, false).await;
    whole.all(&fleet).await;
    assert_eq!(whole.end.as_deref(), Some("the engine has ended"));
    fleet.leave().await;
}

#[actix::test]
async fn a_process_s_log_is_read_and_followed_and_a_slow_reader_is_told_what_it_missed() {
    let mut fleet = Fleet::start("logs").await;
    let go = tempfile::tempdir().unwrap();
    let file = go.path().join("go");
    let script = format!(
        "echo my $BERTH_TEST_SECRET; while [ ! -e {} ]; do sleep 0.01; done; seq 5000; echo done; exec sleep 60",
        file.display()
    );
    let engine = fleet.start_engine(talker(&script)).await;
    let mut reader = loop {
        // It has a log as soon as it runs.
        match Reader::open(&fleet, engine, 10, true).await {
            Ok(reader) => break reader,
            Err(why) => assert!(why.contains("no log yet"), "{why}"),
        }
        tokio::task::yield_now().await;
    };
    reader.until(&fleet, "my").await;
    assert_eq!(reader.text, "my ***\n");
    // It holds its acknowledgement back while 5000 lines come, of which 1000 are kept.
    std::fs::write(&file, "").unwrap();
    let message = tokio::time::timeout(WAIT, reader.pieces.next()).await.unwrap().unwrap();
    let held: LogPiece = berth_wire::decode(&message.payload).unwrap();
    reader.text.push_str(std::str::from_utf8(&held.lines).unwrap());
    reader.skipped += held.skipped;
    let mut late = Reader::open(&fleet, engine, 1, true).await.unwrap();
    late.until(&fleet, "done").await;
    fleet.bus.reply(message.reply, &LogAck { more: true }).await.unwrap();
    reader.until(&fleet, "done").await;
    assert_eq!(reader.text.lines().count() as u64 + reader.skipped, 5002);
    assert!(reader.skipped > 0, "1000 of 5000 lines are kept");
    fleet.stop_engine(engine, true).await;
    reader.all(&fleet).await;
    fleet.leave().await;
}

#[actix::test]
async fn readers_are_few_and_one_that_is_gone_makes_room() {
    let mut fleet = Fleet::start("log-readers").await;
    let engine = fleet.start_engine(talker("while echo tick; do sleep 0.02; done")).await;
    until("it has a log", WAIT, async || Reader::open(&fleet, engine, 1, false).await.is_ok()).await;
    let nobody = ReadLog { engine, tail: 1, follow: true, to: "berth.v1.evt.x".into() };
    let Reply::Refused { message } = fleet.command(Verb::Logs, &nobody).await else { panic!("not refused") };
    assert!(message.contains("`to`"), "{message}");
    let unknown = Reader::open(&fleet, fleet.next_engine(), 1, false).await.err().unwrap();
    assert!(unknown.contains("not on this host"), "{unknown}");
    let mut readers = Vec::new();
    until("no more are let in", WAIT, async || match Reader::open(&fleet, engine, 1, true).await {
        Ok(reader) => {
            readers.push(reader);
            assert!(readers.len() <= 8);
            false
        }
        Err(why) => {
            assert!(why.contains("8 readers"), "{why}");
            true
        }
    })
    .await;
    // Their inboxes close.
    readers.clear();
    let more = Duration::from_secs(40);
    until("there is room again", more, async || Reader::open(&fleet, engine, 1, false).await.is_ok()).await;
    fleet.leave().await;
}
