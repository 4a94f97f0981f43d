use proptest::prelude::*;

use super::*;

const WINDOW: u64 = 1000;

fn attempt(n: u32) -> Attempt {
    Attempt::new(Epoch(1), n)
}

fn begin_frame(n: u32) -> Output {
    let begin = Begin { host: "h".into(), engine: "1-1".parse().unwrap() };
    Output::Frame(Frame { begin: Some(begin), ..Frame::empty(attempt(n), 0) })
}

/// The bytes say which attempt and frame they are of.
fn data_frame(n: u32, seq: u64) -> Output {
    let head = (seq == 1).then_some(Head { status: 200, content_type: None, length: None });
    let data = Some(Bytes::from(format!("{n}:{seq};")));
    Output::Frame(Frame { head, data, ..Frame::empty(attempt(n), seq) })
}

fn end_frame(n: u32, seq: u64) -> Output {
    let end = Some(End { finish: Finish::Stop, usage: Usage::default() });
    Output::Frame(Frame { end, ..Frame::empty(attempt(n), seq) })
}

fn failure() -> ApiError {
    ApiError::new(ErrorKind::EngineFailed, "engine_died", "the engine died")
}

fn notice(epoch: u64, notice: Notice) -> Output {
    Output::Notice { epoch: Epoch(epoch), notice }
}

fn go(step: &Step) -> bool {
    matches!(step.reply, Some(BeginReply::Go { .. }))
}

/// Everything that three attempts could send, and what a scheduler could say.
fn any_output() -> impl Strategy<Value = Output> {
    prop_oneof![
        2 => (1_u32..4).prop_map(begin_frame),
        6 => (1_u32..4, 1_u64..6).prop_map(|(n, seq)| data_frame(n, seq)),
        1 => (1_u32..4, 1_u64..7).prop_map(|(n, seq)| end_frame(n, seq)),
        1 => (1_u32..4, 0_u64..3).prop_map(|(n, epoch)| {
            notice(epoch, Notice::AttemptLost { attempt: attempt(n), error: failure() })
        }),
        1 => (0_u64..3).prop_map(|epoch| {
            notice(epoch, Notice::Waiting { stage: Stage::Queued, position: 1, eta: None })
        }),
    ]
}

/// Three attempts one after the other, as agents send them, with some messages lost, doubled or moved.
fn disturbed() -> impl Strategy<Value = Vec<Output>> {
    let orderly: Vec<Output> = (1..4)
        .flat_map(|n| {
            let lost = notice(1, Notice::AttemptLost { attempt: attempt(n), error: failure() });
            let frames = (1..5).map(move |seq| data_frame(n, seq));
            std::iter::once(begin_frame(n)).chain(frames).chain([end_frame(n, 5), lost])
        })
        .collect();
    let len = orderly.len();
    prop::collection::vec((0..len, 0_u8..3, 0..len), 0..6).prop_map(move |faults| {
        let mut messages = orderly.clone();
        for (at, fault, to) in faults {
            let at = at.min(messages.len() - 1);
            match fault {
                0 => drop(messages.remove(at)),
                1 => messages.insert(at, messages[at].clone()),
                _ => {
                    let message = messages.remove(at);
                    messages.insert(to.min(messages.len()), message);
                }
            }
        }
        messages
    })
}

/// Feeds messages and checks every promise on the way.
fn check(messages: Vec<Output>) -> Result<(), TestCaseError> {
    let mut relay = Relay::new(WINDOW);
    let mut out = String::new();
    let mut ends = Vec::new();
    let mut permitted = None;
    for message in messages {
        let asked = match &message {
            Output::Frame(frame) => (frame.seq == 0).then_some(frame.attempt),
            Output::Notice { .. } | Output::Declined(_) => None,
        };
        let step = relay.step(message, out.len() as u64);
        prop_assert_eq!(asked.is_some(), step.reply.is_some(), "frame 0 alone is answered, and always");
        if go(&step) {
            prop_assert!(out.is_empty() && ends.is_empty(), "permitted an attempt after output or the end");
            prop_assert!(asked > permitted, "permitted attempts are ever newer");
            permitted = asked;
        }
        if !ends.is_empty() {
            prop_assert!(
                step.head.is_none() && step.data.is_none() && step.end.is_none(),
                "something after the end"
            );
        }
        if let Some(data) = step.data {
            out.push_str(std::str::from_utf8(&data).unwrap());
        }
        ends.extend(step.end);
    }
    let pieces: Vec<&str> = out.split_terminator(';').collect();
    let first = pieces.first().and_then(|piece| piece.split_once(':')).map(|(n, _)| n.to_owned());
    for (i, piece) in pieces.iter().enumerate() {
        let wanted = format!("{}:{}", first.as_deref().unwrap(), i + 1);
        prop_assert_eq!(*piece, wanted.as_str(), "a byte twice, out of order, or after a gap in {}", out);
    }
    prop_assert!(ends.len() <= 1);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_client_hears_a_byte_twice_out_of_order_or_after_a_gap(
        messages in prop::collection::vec(any_output(), 0..60)
    ) {
        check(messages)?;
    }

    #[test]
    fn disturbed_attempts_keep_every_promise(messages in disturbed()) {
        check(messages)?;
    }
}

#[test]
fn an_undisturbed_attempt_is_passed_whole() {
    let mut relay = Relay::new(WINDOW);
    assert_eq!(relay.step(begin_frame(1), 0).reply, Some(BeginReply::Go { credit: WINDOW }));
    let step = relay.step(data_frame(1, 1), 0);
    assert_eq!(step.head.map(|head| head.status), Some(200));
    assert_eq!(step.data.as_deref(), Some(&b"1:1;"[..]));
    assert_eq!(relay.step(end_frame(1, 2), 0).end, Some(Ok(Usage::default())));
    assert_eq!(relay.step(end_frame(1, 2), 0), Step::default());
}

#[test]
fn a_gap_ends_the_answer_and_cancels_the_attempt() {
    let mut relay = Relay::new(WINDOW);
    relay.step(begin_frame(1), 0);
    relay.step(data_frame(1, 1), 0);
    let step = relay.step(data_frame(1, 3), 0);
    assert_eq!(step.end.unwrap().unwrap_err().code, "stream_gap");
    assert!(step.cancel);
    assert_eq!(relay.step(data_frame(1, 2), 0), Step::default());
}

#[test]
fn an_attempt_lost_before_output_makes_room_for_the_next() {
    let mut relay = Relay::new(WINDOW);
    relay.step(begin_frame(1), 0);
    let lost = notice(2, Notice::AttemptLost { attempt: attempt(1), error: failure() });
    let step = relay.step(lost, 0);
    assert!(step.end.is_none() && !step.cancel);
    assert_eq!(step.obsolete, Some((attempt(1), "h".into())), "its host may live, and is told to stop");
    assert_eq!(relay.step(data_frame(1, 1), 0), Step::default(), "what is given up is heard no more");
    assert!(go(&relay.step(begin_frame(2), 0)));
}

#[test]
fn an_attempt_lost_after_output_ends_the_answer_and_no_other_begins() {
    let mut relay = Relay::new(WINDOW);
    relay.step(begin_frame(1), 0);
    relay.step(data_frame(1, 1), 0);
    assert!(!go(&relay.step(begin_frame(2), 0)), "the client has output of the first");
    let step = relay.step(notice(2, Notice::AttemptLost { attempt: attempt(1), error: failure() }), 0);
    assert_eq!(step.end, Some(Err(failure())));
    assert!(step.cancel);
    assert!(!go(&relay.step(begin_frame(3), 0)));
}

#[test]
fn an_attempt_given_up_before_it_began_is_refused_when_it_does() {
    let mut relay = Relay::new(WINDOW);
    relay.step(notice(2, Notice::AttemptLost { attempt: attempt(1), error: failure() }), 0);
    assert!(!go(&relay.step(begin_frame(1), 0)));
    assert!(go(&relay.step(begin_frame(2), 0)));
}

#[test]
fn an_attempt_that_is_overtaken_before_output_is_stopped() {
    let mut relay = Relay::new(WINDOW);
    relay.step(begin_frame(1), 0);
    let step = relay.step(begin_frame(2), 0);
    assert!(go(&step));
    assert_eq!(step.obsolete, Some((attempt(1), "h".into())));
    assert_eq!(relay.step(data_frame(1, 1), 0), Step::default());
}

#[test]
fn a_notice_of_an_older_leader_is_dropped() {
    let mut relay = Relay::new(WINDOW);
    relay.step(notice(3, Notice::Waiting { stage: Stage::Loading, position: 0, eta: None }), 0);
    assert_eq!(relay.step(notice(2, Notice::Failed(failure())), 0), Step::default());
    assert_eq!(relay.step(notice(3, Notice::Failed(failure())), 0).end, Some(Err(failure())));
}

#[test]
fn a_host_that_ignores_its_credit_is_cut_off() {
    let mut relay = Relay::new(4);
    relay.step(begin_frame(1), 0);
    assert!(relay.step(data_frame(1, 1), 0).data.is_some());
    let step = relay.step(data_frame(1, 2), 0);
    assert_eq!(step.end.unwrap().unwrap_err().code, "credit_exceeded");
    assert!(step.cancel);
}

#[test]
fn an_end_without_an_answer_is_an_error() {
    let mut relay = Relay::new(WINDOW);
    relay.step(begin_frame(1), 0);
    assert!(relay.step(end_frame(1, 1), 0).end.unwrap().is_err());
}

fn express(output: Output) -> Output {
    let Output::Frame(frame) = output else { return output };
    Output::Frame(Frame { attempt: Attempt::EXPRESS, ..frame })
}

fn on_the_lane() -> Relay {
    Relay::express(WINDOW, "h".into())
}

#[test]
fn an_express_answer_needs_no_permit() {
    let mut relay = on_the_lane();
    assert!(relay.step(express(begin_frame(1)), 0).taken);
    let step = relay.step(express(data_frame(1, 1)), 0);
    assert!(step.taken && step.head.is_some() && step.data.is_some());
    let step = relay.step(express(end_frame(1, 2)), 0);
    assert_eq!(step.end, Some(Ok(Usage::default())));
}

#[test]
fn an_offer_that_is_declined_or_fails_before_it_began_is_submitted_and_then_forgotten() {
    let error = End { finish: Finish::Error(failure()), usage: Usage::default() };
    let failed = Output::Frame(Frame { end: Some(error), ..Frame::empty(Attempt::EXPRESS, 1) });
    let declined = Output::Declined(berth_wire::Reply::Busy { retry_after: None });
    // The second frame without the first.
    let gap = express(data_frame(1, 2));
    for output in [failed, declined.clone(), gap] {
        let mut relay = on_the_lane();
        let step = relay.step(output, 0);
        assert!(step.fall_back && step.end.is_none(), "{step:?}");
        assert!(!relay.is_express());
        assert_eq!(relay.step(declined.clone(), 0), Step::default(), "it falls back once");
        for late in [begin_frame(1), data_frame(1, 1), end_frame(1, 2)] {
            let step = relay.step(express(late), 0);
            assert!(step.data.is_none() && step.end.is_none() && !step.taken, "{step:?}");
        }
        assert!(go(&relay.step(begin_frame(1), 0)), "the attempt of a leader is a newer one");
        assert!(relay.step(data_frame(1, 1), 0).data.is_some());
    }
}

#[test]
fn an_express_answer_that_is_lost_is_submitted_only_while_the_client_has_had_nothing() {
    let mut unserved = on_the_lane();
    assert!(unserved.step(express(begin_frame(1)), 0).taken);
    let step = unserved.lost("host_lost", "lost");
    assert!(step.fall_back);
    assert_eq!(step.obsolete, Some((Attempt::EXPRESS, "h".into())));
    let mut served = on_the_lane();
    served.step(express(data_frame(1, 1)), 0);
    let step = served.lost("host_lost", "lost");
    assert!(!step.fall_back && matches!(step.end, Some(Err(_))));
    let declined = Output::Declined(berth_wire::Reply::Busy { retry_after: None });
    assert_eq!(served.step(declined, 0), Step::default());
}

proptest! {
    /// Whatever comes of an express attempt and of the attempts of a leader after it, in any order.
    #[test]
    fn an_express_job_is_submitted_once_at_most_and_never_after_its_client_has_had_output(
        outputs in prop::collection::vec((any::<bool>(), any_output(), any::<bool>()), 1..40)
    ) {
        let mut relay = on_the_lane();
        let (mut submitted, mut forwarded, mut ended) = (false, None, false);
        for (lane, output, lost) in outputs {
            let attempt = match &output {
                Output::Frame(_) if lane => Some(Attempt::EXPRESS),
                Output::Frame(frame) => Some(frame.attempt),
                _ => None,
            };
            let step = if lost && lane {
                relay.lost("host_lost", "lost")
            } else {
                relay.step(if lane { express(output) } else { output }, 0)
            };
            if step.fall_back {
                prop_assert!(!submitted && forwarded.is_none() && !ended);
                submitted = true;
            }
            if step.head.is_some() || step.data.is_some() {
                prop_assert!(!ended);
                prop_assert!(forwarded.is_none() || forwarded == attempt, "output of two attempts");
                forwarded = attempt;
            }
            if step.end.is_some() {
                prop_assert!(!ended);
                ended = true;
            }
        }
    }
}
