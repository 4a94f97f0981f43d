//! Tracing, metric names and error-chain logging.
