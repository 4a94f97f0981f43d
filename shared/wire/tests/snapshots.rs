//! Every message as bytes. A snapshot that changes is a message that older services would read differently:
//! add fields instead, or raise the schema's version.

#![expect(clippy::unwrap_used, reason = "test code")]

mod samples;

use std::fmt::Write;
use std::time::Duration;

use berth_wire::*;
use bytes::Bytes;
use samples::*;

fn hex(bytes: &[u8]) -> String {
    bytes.chunks(32).fold(String::new(), |mut text, line| {
        for byte in line {
            write!(text, "{byte:02x}").unwrap();
        }
        text.push('\n');
        text
    })
}

/// Pins the bytes, and that they read back as what was written.
fn pin<M: Message + PartialEq + std::fmt::Debug>(name: &str, message: &M) {
    let bytes = encode(message).unwrap();
    assert_eq!(decode::<M>(&bytes).unwrap(), *message);
    let json = String::from_utf8(encode_json(message).unwrap()).unwrap();
    assert_eq!(decode_json::<M>(json.as_bytes()).unwrap(), *message);
    insta::assert_snapshot!(name, format!("{}\n{json}\n{}", M::SCHEMA, hex(&bytes)));
}

#[test]
fn commands_and_replies_keep_their_bytes() {
    let (epoch, engine, job) = (Epoch(7), engine(), JobId(1));
    pin(
        "start",
        &StartEngine { epoch, engine, model: spec(), reservations: reservations(), boot: Some("b".into()) },
    );
    pin("stop", &StopEngine { epoch, engine, reason: "idle".into(), force: true });
    pin("sleep", &SleepEngine { epoch, engine, reason: "its memory is needed".into() });
    pin("wake", &WakeEngine { epoch, engine, reservations: reservations() });
    pin("cancel", &CancelJob { job, attempt: Some(attempt()) });
    pin("credit", &Credit { job, attempt: attempt(), granted: 65_536 });
    pin("status", &StatusRequest { epoch });
    pin("lane", &SetLane { epoch, engine, number: 4, open: true });
    pin("logs", &ReadLog { engine, tail: 100, follow: true, to: "_INBOX.x".into() });
    let lines = Bytes::from_static(b"loaded\n");
    pin("log_piece", &LogPiece { seq: 1, lines, skipped: 2, end: Some("the engine has ended".into()) });
    pin("log_ack", &LogAck { more: true });
    pin("roll", &RollCall { jobs: vec![job] });
    pin("roll_answer", &RollAnswer { missing: vec![job] });
    pin("reply_ok", &Reply::Ok);
    pin("reply_busy", &Reply::Busy { retry_after: Some(Duration::from_millis(50)) });
    pin("reply_stale", &Reply::Stale { epoch });
    pin("reply_refused", &Reply::Refused { message: "no".into() });
    pin("begin_go", &BeginReply::Go { credit: 262_144 });
    pin("begin_refuse", &BeginReply::Refuse { reason: "gone".into() });
}

#[test]
fn reports_keep_their_bytes() {
    let running = RunningAttempt { job: JobId(1), attempt: attempt(), engine: engine() };
    let snapshot = Snapshot {
        beat: beat(),
        engines: vec![engine_report()],
        models: vec![spec()],
        running: vec![running],
        ended: vec![ended()],
        estimates: vec![Estimate { model: "m".into(), bytes: 3 << 30 }],
        found: Vec::new(),
        number: 3,
        upto: 11,
    };
    pin("snapshot", &snapshot);
    let entries = vec![
        ReportEntry::Snapshot(Box::new(snapshot)),
        ReportEntry::Engine(engine_report()),
        ReportEntry::Started(Box::new(started())),
        ReportEntry::Ended(ended()),
        ReportEntry::Ended(Ended { started: Some(Box::new(started())), ..ended() }),
        ReportEntry::Goodbye,
    ];
    pin("report", &Report { host: "h1".into(), boot: "b1".into(), first: 12, entries });
    pin("report_ack", &ReportAck { epoch: Epoch(7), want_snapshot: true });
}

#[test]
fn records_and_events_keep_their_bytes() {
    pin("model", &spec());
    pin("model_that_keeps_contexts", &ModelSpec { leases_keep_context: true, ..spec() });
    pin("host", &beat());
    pin("leader", &LeaderRecord { instance: "s1".into(), since: Timestamp(5), epoch: Epoch(7) });
    pin(
        "engine",
        &EngineRecord {
            engine: engine(),
            host: "h1".into(),
            model: "m".into(),
            kind: EngineKind::Vllm,
            driver: Driver::Process,
            state: EngineState::Starting,
            running: 1,
            concurrency: 4,
            tokens_per_second: 41.5,
            lane: true,
            reservations: reservations(),
            since: Timestamp(5),
            detail: Some("pulling 3 of 9 layers".into()),
            image: Some("ghcr.io/x/y@sha256:0a".into()),
            adapters: vec!["sql".into()],
        },
    );
    let body = EventBody::EngineStopping {
        engine: engine(),
        host: "h1".into(),
        model: "m".into(),
        why: "idle for 60 s".into(),
    };
    pin("event", &Event { at: Timestamp(5), body });
    let alert = EventBody::AlertResolved {
        alert: "host_lost".into(),
        about: "h1".into(),
        message: "the host h1 has gone silent".into(),
        after_s: 60,
    };
    pin("alert", &Event { at: Timestamp(5), body: alert });
}

#[test]
fn leases_and_profiles_keep_their_bytes_and_their_keys() {
    pin("lease", &lease());
    assert_eq!(Lease::key_of(&lease().session, &lease().model), "team_20a_2f1.org_2fm_3a1_2e5");
    let mut profile = Profile::new("org/m:1.5".into(), "0123456789abcdef".into(), "CPU and RAM".into());
    assert_eq!(profile.key(), "org_2fm_3a1_2e5.0123456789abcdef.CPU_20and_20RAM");
    profile.start = Some(Duration::from_millis(1500));
    profile.service = Some(Duration::from_millis(700));
    profile.millitokens_per_second = Some(25_000);
    profile.peak_memory = Some(1 << 30);
    pin("profile", &profile);
}

#[test]
fn an_asynchronous_jobs_record_keeps_its_bytes() {
    let record = AsyncJob {
        id: JobId(7),
        model: "org/m:1.5".into(),
        route: Route::ChatCompletions,
        gateway: "gw-1-0".into(),
        run: None,
        moves: 0,
        kept: None,
        key: Some("team".into()),
        status: JobStatus::Loading,
        position: 3,
        eta: Some(Duration::from_secs(41)),
        submitted_at: Timestamp(1_795_238_762_250),
        began_at: Some(Timestamp(1_795_238_763_250)),
        ended_at: Some(Timestamp(1_795_238_764_250)),
        attempts: 1,
        host: Some("h1".into()),
        result: Some(ResultNote { status: 200, content_type: Some("application/json".into()), len: 23 }),
        usage: Usage { prompt_tokens: Some(5), ..Usage::default() },
        error: Some(error()),
    };
    pin("async_job", &record);
    let moved = AsyncJob { run: Some(JobId(8)), moves: 1, kept: Some(512), ..record };
    pin("async_job_moved", &moved);
}

#[test]
fn what_is_asked_of_leases_keeps_its_bytes() {
    let (session, model) = (lease().session, lease().model);
    let ttl = Duration::from_secs(120);
    let ask = |ttl, keep_context| {
        let (session, model) = (session.clone(), model.clone());
        LeaseRequest::Lease { session, model, key: None, ttl, keep_context }
    };
    pin("lease_ask", &ask(Some(ttl), None));
    pin("lease_ask_as_long_as_is_usual", &ask(None, None));
    pin("lease_ask_that_keeps_the_context", &ask(None, Some(true)));
    pin("lease_that_keeps_the_context", &Lease { keep_context: true, ..lease() });
    pin("lease_release", &LeaseRequest::Release { session: session.clone(), model: None, key: None });
    pin("lease_list", &LeaseRequest::List { session: Some(session.clone()), key: None });
    let lead = Duration::from_secs(20);
    pin("lease_hint", &LeaseRequest::Hint { session, model: model.clone(), lead, key: None });
    let status = LeaseStatus {
        lease: lease(),
        state: LeaseState::Loading,
        position: 2,
        eta: Some(Duration::from_millis(4100)),
        left: ttl,
    };
    pin("lease_held", &LeaseReply::Held(status.clone()));
    pin("lease_released", &LeaseReply::Released { models: vec![model] });
    pin("leases", &LeaseReply::Leases { leases: vec![status], total: 1 });
    pin("lease_noted", &LeaseReply::Noted);
    pin("lease_refused", &LeaseReply::Refused(error()));
}

#[test]
fn what_operators_ask_and_are_told() {
    let model = berth_wire::ModelId::from("org/m:1.5");
    let (host, session, key) = (Some("h1".into()), "s".into(), Some("ci".into()));
    let requests = [
        ("operate_explain", OperateRequest::Explain { job: JobId(1), key: None }),
        ("operate_jobs", OperateRequest::Jobs { waiting: true, limit: 10, key: key.clone() }),
        ("operate_models", OperateRequest::Models),
        ("operate_load", OperateRequest::Load { model: model.clone(), host: host.clone() }),
        ("operate_unload", OperateRequest::Unload { model: model.clone(), host, force: true }),
        ("operate_pin", OperateRequest::Pin { model: model.clone(), pin: true }),
        ("operate_hints", OperateRequest::Hints { session: None, key: None }),
        ("operate_withdraw", OperateRequest::Withdraw { session, model: None, key: None }),
    ];
    for (name, request) in requests {
        pin(name, &request);
    }
    let job = berth_wire::JobView {
        job: JobId(1),
        model: model.clone(),
        running: false,
        position: Some(2),
        class: berth_wire::Class::Batch,
        session: Some("s".into()),
        key,
        age_s: 1.5,
        eta_s: None,
        why: Some("its model is being loaded".into()),
        engine: None,
        host: None,
        attempts: 0,
    };
    let place = PlaceView {
        host: "h1".into(),
        accelerators: vec!["ram".into()],
        evicts: vec![model.clone()],
        wake: false,
        loss_s: 0.5,
        drain_s: 0.0,
        start_s: 3.0,
        cost_s: 3.5,
    };
    let why = JobWhy { job: job.clone(), model_waited_s: 1.5, places: vec![place] };
    let hint = HintView { session: "s".into(), model: model.clone(), key: None, due_s: 20.0 };
    let replies = [
        ("operated_explained", OperateReply::Explained(Box::new(why))),
        ("operated_jobs", OperateReply::Jobs { jobs: vec![job], total: 1 }),
        ("operated_done", OperateReply::Done { engines: vec![engine()], already: false }),
        ("operated_hints", OperateReply::Hints(vec![hint])),
        ("operated_withdrawn", OperateReply::Withdrawn { models: vec![model] }),
        ("operated_refused", OperateReply::Refused(error())),
    ];
    for (name, reply) in replies {
        pin(name, &reply);
    }
}

#[test]
fn the_policy_of_a_fleet() {
    let policy = PolicySettings {
        idle_ttl: Some(Duration::from_secs(60)),
        asleep_ttl: None,
        max_wait: Duration::from_secs(300),
        queue_limit: 100_000,
        model_queue_limit: 20_000,
        key_queue_limit: 20_000,
        lease_ceiling: Duration::from_secs(3600),
        leases_per_session: 8,
        leases_per_key: 256,
    };
    pin("policy", &PolicyRecord { configured: "0123456789abcdef".into(), at: Timestamp(5), policy });
}

#[test]
fn an_api_key() {
    let mut key = KeyRecord::new("ci".into(), KeyHash::of("berth-0"));
    pin("key_plain", &key);
    key.scope = Scope::Admin;
    key.class = Class::Batch;
    key.limits =
        KeyLimits { concurrency: Some(4), requests_per_minute: Some(60), tokens_per_minute: Some(10_000) };
    key.models = vec!["org/m:1.5".into()];
    key.created = Some(Timestamp(1_795_238_762_250));
    key.expires = Some(Timestamp(1_797_830_762_250));
    pin("key", &key);
}

#[test]
fn a_job_keeps_its_bytes_and_its_body_stays_a_slice() {
    let mut job = Job {
        id: JobId(1),
        model: "org/m:1.5".into(),
        adapter: None,
        route: Route::ChatCompletions,
        gateway: "gw-1-0".into(),
        stream: true,
        session: Some("s".into()),
        submitted_at: Timestamp(5),
        deadline: Some(Timestamp(9)),
        hurried: false,
        window: 262_144,
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        class: berth_wire::Class::Standard,
        key: None,
        content_type: None,
        target: None,
        body: Body::Inline(Bytes::from_static(b"{\"model\":\"m\"}")),
    };
    let payload = Bytes::from(job.encode().unwrap());
    insta::assert_snapshot!("job", hex(&payload));
    let read = Job::decode(&payload).unwrap();
    assert_eq!(read, job);
    let Body::Inline(body) = read.body else { unreachable!() };
    let range = payload.as_ptr_range();
    assert!(range.contains(&body.as_ptr()), "the body is not copied");
    job.body = Body::Claim { object: "o".into(), len: 9 };
    let payload = Bytes::from(job.encode().unwrap());
    insta::assert_snapshot!("job_claim", hex(&payload));
    assert_eq!(Job::decode(&payload).unwrap(), job);
}

#[test]
fn output_keeps_its_bytes_and_its_data_stays_a_slice() {
    let mut frame = Frame::empty(attempt(), 0);
    frame.begin = Some(Begin { host: "h1".into(), engine: engine() });
    frame.head = Some(Head { status: 200, content_type: Some("text/event-stream".into()), length: None });
    frame.data = Some(Bytes::from_static(b"data: {}\n\n"));
    frame.end = Some(End { finish: Finish::Error(error()), usage: Usage::default() });
    let mut outputs = vec![("frame", Output::Frame(frame))];
    let waiting = Notice::Waiting { stage: Stage::Loading, position: 3, eta: Some(Duration::from_secs(41)) };
    let lost = Notice::AttemptLost { attempt: attempt(), error: error() };
    for (name, notice) in [("waiting", waiting), ("attempt_lost", lost), ("failed", Notice::Failed(error()))]
    {
        outputs.push((name, Output::Notice { epoch: Epoch(7), notice }));
    }
    outputs.push(("declined", Output::Declined(Reply::Busy { retry_after: None })));
    for (name, output) in outputs {
        let payload = Bytes::from(output.encode().unwrap());
        insta::assert_snapshot!(name, hex(&payload));
        assert_eq!(Output::decode(&payload).unwrap(), output);
    }
}

#[test]
fn what_is_asked_of_drained_hosts_keeps_its_bytes() {
    pin("drain_ask", &DrainRequest::Drain { host: "h1".into() });
    pin("drain_end", &DrainRequest::Undrain { host: "h1".into() });
    pin("drain_look", &DrainRequest::Look { host: "h1".into() });
    let status = DrainStatus {
        host: "h1".into(),
        draining: true,
        since: Some(Timestamp(1_000)),
        present: true,
        running: 2,
        engines: 1,
        staying: 0,
        empty: false,
    };
    pin("drain_host", &DrainReply::Host(status));
    pin("drain_refused", &DrainReply::Refused(error()));
    pin("drain", &Drain { host: "h1".into(), since: Timestamp(1_000) });
}

#[test]
fn unknown_fields_are_accepted_and_missing_ones_are_named() {
    let newer = serde_json::json!({ "job": JobId(1), "attempt": attempt(), "granted": 5, "later": true });
    let bytes = rmp_serde::to_vec_named(&newer).unwrap();
    assert_eq!(decode::<Credit>(&bytes).unwrap().granted, 5);
    let short = rmp_serde::to_vec_named(&serde_json::json!({ "job": JobId(1) })).unwrap();
    let error = decode::<Credit>(&short).unwrap_err().to_string();
    assert!(error.contains("ctl.credit/1") && error.contains("attempt"), "{error}");
}
