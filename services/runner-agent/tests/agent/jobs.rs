//! Jobs on an engine that is a process.

use std::time::Duration;

use berth_testkit::wait::until;
use berth_wire::{BeginReply, Body, EngineId, Finish, Job, Outcome, Reply, Route, Target};

use crate::fixture::{Fleet, STREAM, WAIT, ask, python, stats};
use crate::gateway::text;

/// What the agent adds to a stream's request.
const ASKED: &str = r#","stream_options":{"include_usage":true}"#;

#[actix::test]
async fn a_streamed_answer_arrives_in_numbered_frames_with_usage_and_one_end() {
    let mut fleet = Fleet::start("stream").await;
    let engine = fleet.ready_engine(python(&[])).await;
    let (_, attempt) = fleet.run(engine, STREAM).await;
    let frames = fleet.gateway.take_all(1 << 20).await;
    assert_eq!(frames[0].begin.as_ref().unwrap().engine, engine);
    let head = frames[1].head.as_ref().unwrap();
    assert_eq!((head.status, head.content_type.as_deref()), (200, Some("text/event-stream")));
    assert!(text(&frames).starts_with("data: 0 xxx"));
    assert!(text(&frames).ends_with("data: [DONE]\n\n"));
    let end = frames.last().unwrap().end.clone().unwrap();
    assert_eq!(end.finish, Finish::Stop);
    assert_eq!((end.usage.prompt_tokens, end.usage.completion_tokens), (Some(5), Some(4)));
    let ended = fleet.ended(attempt).await;
    assert_eq!(ended.outcome, Outcome::Completed);
    assert!(ended.usage.first_byte.is_some());
    let sent = &stats(&fleet).await["bodies"][0];
    let wanted = STREAM.replace("alias", "served").replace('}', &format!("{ASKED}}}"));
    assert_eq!(sent["text"], wanted, "only the model changes, and usage is asked for");
    assert!(sent["traceparent"].as_str().unwrap().starts_with("00-0af"));
    fleet.leave().await;
}

async fn echoed(fleet: &mut Fleet, engine: EngineId, job: &Job) -> serde_json::Value {
    assert_eq!(fleet.dispatch(engine, job).await, Reply::Ok);
    let frames = fleet.gateway.take_all(1 << 20).await;
    assert_eq!(frames[1].head.as_ref().unwrap().status, 200);
    serde_json::from_str(&text(&frames)).unwrap()
}

#[actix::test]
async fn a_form_goes_to_its_route_with_its_own_type_and_the_engines_name() {
    let mut fleet = Fleet::start("form").await;
    let engine = fleet.ready_engine(python(&[])).await;
    let form = "--b\r\ncontent-disposition: form-data; name=model\r\n\r\nalias\r\n--b--\r\n";
    let mut job = fleet.job(form);
    job.route = Route::Transcriptions;
    job.content_type = Some("multipart/form-data; boundary=b".into());
    let came = echoed(&mut fleet, engine, &job).await;
    assert_eq!(came["path"], "/v1/audio/transcriptions");
    assert_eq!(came["type"], "multipart/form-data; boundary=b");
    assert_eq!(came["text"], form.replace("alias", "served"));
    fleet.leave().await;
}

#[actix::test]
async fn an_upstream_request_is_asked_of_the_engine_as_it_came() {
    let mut fleet = Fleet::start("upstream").await;
    let mut spec = python(&[]);
    spec.aliases = vec!["alias".into()];
    let engine = fleet.ready_engine(spec).await;
    let cases = [
        ("GET", "", None, ""),
        ("DELETE", "", None, ""),
        ("PUT", "\u{1}\n", Some("application/x-own"), "\u{1}\n"),
        ("POST", r#"{ "model":"alias" }"#, Some("application/json"), r#"{ "model":"served" }"#),
        ("POST", r#"{"model":"adapter"}"#, Some("application/json"), r#"{"model":"adapter"}"#),
        ("POST", r#"{"model":"alias"}"#, None, r#"{"model":"served"}"#),
        ("POST", r#"model="alias""#, None, r#"model="alias""#),
    ];
    for (method, body, kind, at_engine) in cases {
        let mut job = fleet.job(body);
        job.route = Route::Upstream;
        job.content_type = kind.map(str::to_owned);
        job.target = Some(Target { method: method.into(), path: "/echo/a%2Fb//c?x=%20&y".into() });
        let came = echoed(&mut fleet, engine, &job).await;
        assert_eq!((came["method"].as_str(), came["type"].as_str()), (Some(method), kind), "{came}");
        assert_eq!(came["path"], "/echo/a%2Fb//c?x=%20&y");
        assert_eq!(came["text"], at_engine);
    }
    fleet.leave().await;
}

#[actix::test]
async fn sound_leaves_the_agent_piece_by_piece() {
    let mut fleet = Fleet::start("sound").await;
    let engine = fleet.ready_engine(python(&[])).await;
    let mut job = fleet.job("");
    let target = |path: &str| Some(Target { method: "GET".into(), path: path.into() });
    (job.route, job.target) = (Route::Upstream, target("/sound"));
    assert_eq!(fleet.dispatch(engine, &job).await, Reply::Ok);
    fleet.gateway.answer(&BeginReply::Go { credit: 1 << 20 }).await;
    // The engine sends the rest only when it is told to: a piece that waited to be full would never come.
    let first = fleet.gateway.frame().await;
    assert_eq!(first.data.as_deref(), Some(&b"first"[..]));
    ask(&fleet, "/sound/on").await;
    let mut rest = Vec::new();
    loop {
        let frame = fleet.gateway.frame().await;
        rest.extend_from_slice(frame.data.as_deref().unwrap_or_default());
        if frame.end.is_some() {
            break;
        }
    }
    assert_eq!(rest, b"second");
    fleet.leave().await;
}

#[actix::test]
async fn a_plain_answer_is_one_frame_with_its_end() {
    let mut fleet = Fleet::start("plain").await;
    let engine = fleet.ready_engine(python(&[])).await;
    fleet.run(engine, r#"{"model":"m"}"#).await;
    let frames = fleet.gateway.take_all(1 << 20).await;
    assert_eq!(frames.len(), 2);
    assert!(frames[1].head.is_some() && frames[1].data.is_some());
    assert_eq!(frames[1].end.as_ref().unwrap().usage.completion_tokens, Some(2));
    fleet.leave().await;
}

#[actix::test]
async fn requests_one_after_the_other_use_one_connection_to_their_engine() {
    let mut fleet = Fleet::start("connection").await;
    let engine = fleet.ready_engine(python(&[])).await;
    for body in [r#"{"model":"m"}"#, STREAM].repeat(10) {
        let (_, attempt) = fleet.run(engine, body).await;
        fleet.gateway.take_all(1 << 20).await;
        assert_eq!(fleet.ended(attempt).await.outcome, Outcome::Completed);
    }
    let told = stats(&fleet).await;
    assert_eq!((&told["requests"], &told["connections"]), (&20.into(), &1.into()));
    fleet.leave().await;
}

#[actix::test]
async fn slots_in_use_are_in_the_engines_bucket_before_the_next_heartbeat() {
    let mut fleet = Fleet::start("slots").await;
    let engine = fleet.ready_engine(python(&[])).await;
    let records = fleet.bus.bucket("engines").await.unwrap();
    let key = format!("slots.{engine}");
    let in_use = async |count: u32| {
        until("the slots in use are told", WAIT, async || {
            let record = records.get(&key).await.unwrap().unwrap();
            berth_wire::decode_json::<berth_wire::EngineRecord>(&record).unwrap().running == count
        })
        .await;
    };
    let began = std::time::Instant::now();
    for _ in 0..2 {
        let (job, attempt) = fleet.run(engine, r#"{"model":"m","do":"hang"}"#).await;
        fleet.gateway.answer(&BeginReply::Go { credit: 1 << 20 }).await;
        in_use(1).await;
        fleet.cancel(&job).await;
        fleet.ended(attempt).await;
        in_use(0).await;
    }
    // Four heartbeats take 15 s at least.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    fleet.leave().await;
}

#[actix::test]
async fn a_large_body_comes_by_claim_check_and_is_left_to_its_gateway() {
    let mut fleet = Fleet::start("claim").await;
    let engine = fleet.ready_engine(python(&[])).await;
    let bodies = berth_bus::Bodies::open(&fleet.bus).await.unwrap();
    let text = format!(r#"{{"model":"alias","pad":"{}"}}"#, "x".repeat(3 << 20));
    let len = text.len() as u64;
    bodies.put("b1", &text.into()).await.unwrap();
    let job = fleet.job_with(Body::Claim { object: "b1".into(), len });
    assert_eq!(fleet.dispatch(engine, &job).await, Reply::Ok);
    let frames = fleet.gateway.take_all(1 << 20).await;
    let usage = frames.last().unwrap().end.as_ref().unwrap().usage;
    let longer = 1 + ASKED.len() as u64;
    assert_eq!(usage.prompt_tokens, Some(len + longer), "`served` is one longer than `alias`");
    fleet.leave().await;
    assert!(bodies.get("b1", len).await.is_ok());
}

#[actix::test]
async fn without_credit_no_more_is_sent() {
    let mut fleet = Fleet::start("credit").await;
    let engine = fleet.ready_engine(python(&[])).await;
    let (job, attempt) = fleet.run(engine, r#"{"model":"m","do":"stream","n":50,"size":1000}"#).await;
    fleet.gateway.answer(&BeginReply::Go { credit: 4096 }).await;
    let (mut sent, mut seq) = (0, 0);
    while sent < 4096 {
        let frame = fleet.gateway.frame().await;
        seq += 1;
        assert_eq!(frame.seq, seq);
        sent += frame.data.unwrap().len();
    }
    assert_eq!(sent, 4096, "never more than was granted");
    assert!(fleet.gateway.is_quiet(Duration::from_millis(300)).await);
    fleet.credit(&job, attempt, 5000).await;
    assert_eq!(fleet.gateway.frame().await.data.unwrap().len(), 5000 - 4096);
    fleet.credit(&job, attempt, 1 << 20).await;
    while fleet.gateway.frame().await.end.is_none() {}
    assert_eq!(fleet.ended(attempt).await.outcome, Outcome::Completed);
    fleet.leave().await;
}

#[actix::test]
async fn an_answer_that_just_uses_up_its_credit_ends_without_more() {
    let mut fleet = Fleet::start("exact").await;
    let engine = fleet.ready_engine(python(&[])).await;
    fleet.run(engine, r#"{"model":"m"}"#).await;
    let whole = text(&fleet.gateway.take_all(1 << 20).await).len() as u64;
    let (_, attempt) = fleet.run(engine, r#"{"model":"m"}"#).await;
    assert_eq!(text(&fleet.gateway.take_all(whole).await).len() as u64, whole);
    assert_eq!(fleet.ended(attempt).await.outcome, Outcome::Completed);
    fleet.leave().await;
}

#[actix::test]
async fn a_cancelled_job_frees_its_slot_and_its_engines_request() {
    let mut fleet = Fleet::start("cancel").await;
    let engine = fleet.ready_engine(python(&[])).await;
    let (job, attempt) = fleet.run(engine, r#"{"model":"m","do":"stream","n":10000,"delay":0.05}"#).await;
    fleet.gateway.answer(&BeginReply::Go { credit: 1 << 20 }).await;
    fleet.gateway.frame().await;
    let other = fleet.job(r#"{"model":"m"}"#);
    assert_eq!(fleet.dispatch(engine, &other).await, Reply::Busy { retry_after: None });
    assert_eq!(fleet.status().await.running.len(), 1);
    let mut events = 1;
    while events < 4 {
        let data = fleet.gateway.frame().await.data.unwrap();
        events += std::str::from_utf8(&data).unwrap().matches("data:").count() as u64;
    }
    assert_eq!(fleet.cancel(&job).await, Reply::Ok);
    let ended = fleet.ended(attempt).await;
    assert_eq!(ended.outcome, Outcome::Cancelled);
    // The engine told no usage yet: every event after the first counts as a token.
    assert!(ended.usage.completion_tokens >= Some(events - 1), "{:?} of {events}", ended.usage);
    let told = loop {
        if let Some(end) = fleet.gateway.frame().await.end {
            assert_eq!(end.finish, Finish::Cancelled);
            break end.usage.completion_tokens;
        }
    };
    assert!(told >= Some(events - 1), "{told:?} of {events}");
    assert_eq!(fleet.dispatch(engine, &other).await, Reply::Ok);
    fleet.gateway.take_all(1 << 20).await;
    until("the engine saw its client leave", WAIT, async || stats(&fleet).await["aborted"] == 1).await;
    fleet.leave().await;
}

#[actix::test]
async fn a_job_that_hangs_before_its_first_byte_can_be_cancelled_too() {
    let mut fleet = Fleet::start("hang").await;
    let engine = fleet.ready_engine(python(&[])).await;
    let (job, attempt) = fleet.run(engine, r#"{"model":"m","do":"hang"}"#).await;
    fleet.gateway.answer(&BeginReply::Go { credit: 1 << 20 }).await;
    until("the engine has it", WAIT, async || stats(&fleet).await["requests"] == 1).await;
    assert_eq!(fleet.cancel(&job).await, Reply::Ok);
    assert_eq!(fleet.ended(attempt).await.outcome, Outcome::Cancelled);
    until("the engine saw its client leave", WAIT, async || stats(&fleet).await["aborted"] == 1).await;
    fleet.leave().await;
}

#[actix::test]
async fn a_gateway_that_is_gone_or_refuses_ends_the_attempt_as_abandoned() {
    let mut fleet = Fleet::start("abandon").await;
    let engine = fleet.ready_engine(python(&[])).await;
    let (_, refused) = fleet.run(engine, r#"{"model":"m","do":"hang"}"#).await;
    until("the engine has it", WAIT, async || stats(&fleet).await["requests"] == 1).await;
    fleet.gateway.answer(&BeginReply::Refuse { reason: "the client left".into() }).await;
    assert_eq!(fleet.ended(refused).await.outcome, Outcome::Abandoned);
    until("the engine saw its client leave", WAIT, async || stats(&fleet).await["aborted"] == 1).await;
    fleet.gateway.close();
    let (_, lost) = fleet.run(engine, r#"{"model":"m","do":"hang"}"#).await;
    assert_eq!(fleet.ended(lost).await.outcome, Outcome::Abandoned);
    fleet.leave().await;
}

#[actix::test]
async fn an_engine_that_dies_while_it_answers_is_told_of_without_what_it_logged_of_requests() {
    let mut fleet = Fleet::start("die").await;
    let engine = fleet.ready_engine(python(&[])).await;
    let (_, attempt) = fleet.run(engine, r#"{"model":"m","do":"die","n":2,"delay":0.1}"#).await;
    let frames = fleet.gateway.take_all(1 << 20).await;
    let Finish::Error(error) = frames.last().unwrap().end.clone().unwrap().finish else { panic!("no error") };
    assert_eq!(error.code, "engine_failed");
    assert!(!error.message.contains("127.0.0.1"), "{}", error.message);
    let Outcome::Failed { output_sent, .. } = fleet.ended(attempt).await.outcome else {
        panic!("not failed")
    };
    assert!(output_sent);
    let failure = fleet.failure_of(engine).await;
    assert!(failure.was_ready && !failure.permanent);
    assert!(failure.message.contains("exit code 7"), "{}", failure.message);
    assert!(!failure.message.contains("dying on request"), "{}", failure.message);
    let job = fleet.job(STREAM);
    assert!(matches!(fleet.dispatch(engine, &job).await, Reply::Refused { .. }));
    fleet.leave().await;
}

#[actix::test]
async fn an_engine_that_dies_before_its_first_byte_leaves_the_job_to_another_attempt() {
    let mut fleet = Fleet::start("early").await;
    let engine = fleet.ready_engine(python(&[])).await;
    let (_, attempt) = fleet.run(engine, r#"{"model":"m","do":"die","n":0}"#).await;
    fleet.gateway.answer(&BeginReply::Go { credit: 1 << 20 }).await;
    let Outcome::Failed { output_sent, .. } = fleet.ended(attempt).await.outcome else {
        panic!("not failed")
    };
    assert!(!output_sent);
    assert!(fleet.gateway.is_quiet(Duration::from_millis(200)).await, "the gateway hears nothing of it");
    fleet.leave().await;
}
