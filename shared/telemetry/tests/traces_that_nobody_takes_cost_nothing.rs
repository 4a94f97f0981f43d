//! What a request costs where no collector is configured.

#[cfg(test)]
mod tests {
    use berth_config::TelemetryConfig;
    use berth_telemetry::trace::{SpanKind, start};
    use peak_alloc::PeakAlloc;

    #[global_allocator]
    static HEAP: PeakAlloc = PeakAlloc;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn nothing_is_allocated() {
        let (tracer, _) = start(&TelemetryConfig::default(), "gateway", "g1").unwrap();
        let before = HEAP.current_usage();
        HEAP.reset_peak_usage();
        for id in 0..1000 {
            let entered = tracer.enter(Some(PARENT), id, "chat");
            let within = tracer.within(Some(PARENT), SpanKind::Client, "chat");
            assert!(!tracer.is_on() && entered.is_none() && within.is_none());
        }
        let most = HEAP.peak_usage();
        assert_eq!(most, before, "bytes in use");
    }
}
