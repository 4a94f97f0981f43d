//! What is no message is an error.

use berth_wire::{Job, LeaseRequest, Output, Report, StartEngine, decode};
use proptest::prelude::*;

proptest! {
    #[test]
    fn decoding_garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let payload = bytes::Bytes::from(bytes);
        let _ = Output::decode(&payload);
        let _ = Job::decode(&payload);
        let _ = decode::<Report>(&payload);
        let _ = decode::<StartEngine>(&payload);
        let _ = decode::<LeaseRequest>(&payload);
    }
}
