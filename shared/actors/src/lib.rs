//! Supervision on actix: restart with back-off, observable state, ordered drain.
