//! A gateway as an agent knows it: it answers frame 0 and takes the others.

use std::cell::RefCell;
use std::time::Duration;

use berth_bus::{Bus, Delivery, NatsOutput, NatsOutputSource, OutputSource};
use berth_wire::{BeginReply, Frame, GatewayId, Output};

use crate::fixture::WAIT;

/// A gateway that takes what comes.
pub(crate) struct Gateway {
    pub(crate) name: GatewayId,
    bus: Bus,
    source: RefCell<Option<NatsOutputSource>>,
}

impl Gateway {
    pub(crate) async fn open(bus: &Bus) -> Self {
        let name = GatewayId::from("gw-1");
        let source = NatsOutput::new(bus.clone()).listen(&name).await.unwrap();
        Self { name, bus: bus.clone(), source: RefCell::new(Some(source)) }
    }

    /// Goes away: nobody hears its subject any more.
    pub(crate) fn close(&self) {
        self.source.take();
    }

    pub(crate) async fn next(&self) -> Delivery {
        let mut source = self.source.take().unwrap();
        let next = tokio::time::timeout(WAIT, source.next()).await.expect("a frame in time").unwrap();
        self.source.replace(Some(source));
        next
    }

    /// Whether nothing comes for a while.
    pub(crate) async fn is_quiet(&self, during: Duration) -> bool {
        let mut source = self.source.take().unwrap();
        let quiet = tokio::time::timeout(during, source.next()).await.is_err();
        self.source.replace(Some(source));
        quiet
    }

    /// Takes frame 0 and answers it.
    pub(crate) async fn answer(&self, reply: &BeginReply) -> Frame {
        let delivery = self.next().await;
        let Output::Frame(frame) = delivery.output else { panic!("no frame") };
        assert_eq!(frame.seq, 0);
        assert!(frame.begin.is_some());
        self.bus.reply(delivery.reply, reply).await.unwrap();
        frame
    }

    pub(crate) async fn frame(&self) -> Frame {
        let Output::Frame(frame) = self.next().await.output else { panic!("no frame") };
        frame
    }

    /// Permits the attempt and takes all of its frames, checking their numbers.
    pub(crate) async fn take_all(&self, credit: u64) -> Vec<Frame> {
        let mut frames = vec![self.answer(&BeginReply::Go { credit }).await];
        loop {
            let frame = self.frame().await;
            assert_eq!(frame.seq, frames.len() as u64, "a gap");
            frames.push(frame);
            if frames.last().unwrap().end.is_some() {
                return frames;
            }
        }
    }
}

pub(crate) fn text(frames: &[Frame]) -> String {
    let data: Vec<u8> = frames.iter().filter_map(|frame| frame.data.as_deref()).flatten().copied().collect();
    String::from_utf8(data).unwrap()
}
